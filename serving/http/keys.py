"""The tokens that open /v1, /v2 and the demo: from the command line, the environment, a file.

Only their digests are kept. A request's token is compared with every one of them, so that the time
an answer takes tells neither which token was nearly right nor how many there are.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from augself_hub.errors import UsageError

MAX_LENGTH = 1024  # characters; nothing longer is hashed
_TOKEN = re.compile(rf"[\x21-\x7e]{{1,{MAX_LENGTH}}}")  # what a header can carry


class Keys:
    """Who may come in: everybody, where there is no token.

    Raises:
        UsageError: a token that no client could send.
    """

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests = []
        for token in tokens:
            if not _TOKEN.fullmatch(token):
                raise UsageError(
                    f"a token is empty, longer than {MAX_LENGTH} characters, or has blanks or "
                    "letters beyond ASCII: no client could send it"
                )
            self._digests.append(_digest(token))

    def admit(self, authorization: str) -> bool:
        """Whether the value of an Authorization header brings one of the tokens.

        As `Bearer`, or as the password of `Basic`, which browsers send of themselves.
        """
        if not self._digests:
            return True
        scheme, _, token = authorization.partition(" ")
        scheme, token = scheme.lower(), token.strip() if len(token) <= 2 * MAX_LENGTH else ""
        if scheme == "basic":  # base64 of `user:password`, whatever the user is called
            try:
                token = base64.b64decode(token, validate=True).decode().partition(":")[2]
            except ValueError:
                token = ""
        given = _digest(token)
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme in ("bearer", "basic") and any(found)


def read_tokens(path: Path) -> list[str]:
    """One token a line; empty lines and those that begin with # are left out.

    Raises:
        UsageError: no text, or no token in it: an empty file must not open the door.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text: write one token a line") from None
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise UsageError(f"{path} holds no token: write one a line, or leave --tokens-file out")
    return tokens


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="replace")).digest()
