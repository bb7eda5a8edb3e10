"""Why a model gives no answer now. Raised where it is noticed; http gives each its status, once."""

from augself_hub.errors import AugSelfError


class Refused(AugSelfError):
    """Work that is not done. `code` is stable and goes into HTTP answers."""

    code = "refused"


class UnknownModel(Refused):
    """No model has this name."""

    code = "model_not_found"


class ModelNotLoaded(Refused):
    """Loading it failed lately."""

    code = "model_not_loaded"


class QueueFull(Refused):
    """Too many images wait already; try again later."""

    code = "queue_full"


class Draining(Refused):
    """The server is shutting down and accepts nothing new."""

    code = "draining"


class WorkerLost(Refused):
    """The worker has died and is not back yet."""

    code = "worker_lost"


class DecodersStuck(Refused):
    """Every decoding thread has been at one image for longer than the deadline."""

    code = "decoders_stuck"
