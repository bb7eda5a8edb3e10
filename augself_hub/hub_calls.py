"""Calls of the Hub's client: asked again while the Hub is busy, their errors in one line."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from augself_hub.errors import HubError

_BUSY = (429, 500, 502, 503, 504)
_WAITS = (1.0, 2.0, 4.0)  # seconds before the Hub is asked again while it is busy

log = logging.getLogger(__name__)


def patiently(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the Hub, and again after a while if it is busy."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for wait in _WAITS:
        try:
            return call(*arguments, **options)
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            if _status(error) not in _BUSY:
                raise
            log.info("the Hub is busy (%s): asking again in %g s", _status(error), wait)
            time.sleep(wait)
    return call(*arguments, **options)


@contextlib.contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """What goes wrong with the Hub becomes one line that names the mend."""
    from huggingface_hub import errors

    # Of whichever HTTP library it uses.
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (http_error, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubError(_advice(name, error)) from error
    except ValueError as error:  # a name or a card the Hub does not accept
        raise HubError(f"{name}: {' '.join(str(error).split())}") from error


def _advice(name: str, error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    status = _status(error)
    if status in _BUSY:
        return f"{name}: the Hub is busy ({status}): try again later"
    if status is not None:
        return _ADVICE.get(status, "{}: the Hub answered {}").format(name, status)
    if isinstance(error.__cause__ or error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return f"{name}: not in the cache, and the Hub may not be asked (HF_HUB_OFFLINE)"
    return f"{name}: the Hub cannot be reached: check the connection and HF_ENDPOINT"


_ADVICE = {
    401: "{}: the Hub does not know it or does not know you ({}): check the name, or log in with "
    "`hf auth login`",
    403: "{}: your token has no right to this ({}): use one with write access, or ask the owner",
    404: "{}: the Hub has no such model or revision ({}): check the name",
    409: "{}: somebody changed it at the same time ({}): try again",
    412: "{}: somebody changed it at the same time ({}): try again",
}


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error, if there is one."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return None if response is None else int(response.status_code)
