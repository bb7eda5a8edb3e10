"""The errors users see: one line each, naming what was given, what was expected, what to do."""

RUNTIME_INSTALL = "pip install 'augself-hub[gpu]'"


class AugSelfError(Exception):
    """Something the user can mend. The command line prints it as one line and exits with 1."""


class UsageError(AugSelfError):
    """A call that can never work as written. The command line exits with 2."""


class MissingExtra(AugSelfError):
    """A part that was not installed. Says which extra to install.

    ONNX Runtime comes with one of three extras, whatever else is wanted: their wheels share one
    module.
    """

    def __init__(self, missing: str, extra: str) -> None:
        install = f"pip install 'augself-hub[{extra}]'"
        if missing == "onnxruntime":
            install = f"{RUNTIME_INSTALL} (for GPUs and CPUs), or [cpu] (smaller) or [openvino]"
        super().__init__(f"{missing} is not installed: {install}")


class ModelFolderError(AugSelfError):
    """A model folder that is missing, incomplete, or disagrees with its manifest."""


class HubError(ModelFolderError):
    """The Hub did not give, take or list a model. Says what to do about it."""


class NoHeads(AugSelfError):
    """A model that was asked for differences and gives features alone."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} has no AugSelf heads: train some with augself fit-heads")


class CheckpointError(AugSelfError):
    """A foreign checkpoint that cannot be converted."""


class Diverged(AugSelfError):
    """A training run that has nothing to gain any more: it diverged or collapsed."""


class ImageError(AugSelfError):
    """An image that cannot be used. `code` is stable and goes into HTTP answers.

    Attributes:
        param: which of a request's images it is, e.g. `input[3]`; None: not one of several.
    """

    code = "invalid_image"
    param: str | None = None


class EmptyImage(ImageError):
    code = "empty_image"


class UndecodableImage(ImageError):
    code = "undecodable_image"


class UnsupportedImage(ImageError):
    code = "unsupported_image"


class TooManyPixels(ImageError):
    code = "too_many_pixels"


def first_line(error: Exception) -> str:
    """What a library's exception says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
