"""The Accept header: which of the offered media types a client wants most."""

from __future__ import annotations

from serving.http.problems import Problem

JSON, NPY = "application/json", "application/x-npy"


def negotiated(accept: str | None, *offers: str) -> str:
    """The offer of the highest quality; among equals the first.

    Raises:
        Problem: 406, none is accepted.
    """
    ranges = dict(_range(part) for part in (accept or "*/*").split(","))
    quality = {offer: _quality(offer, ranges) for offer in offers}
    best = max(offers, key=lambda offer: quality[offer])
    if quality[best] == 0:
        raise Problem(406, "not_acceptable", f"this answer comes as {' or '.join(offers)}")
    return best


def _range(part: str) -> tuple[str, float]:
    """`application/json;q=0.5` -> (application/json, 0.5). What is no quality is 0."""
    name, *parameters = (word.strip().lower() for word in part.split(";"))
    given = [word[2:] for word in parameters if word.startswith("q=")]
    try:
        quality = float(given[0]) if given else 1.0
    except ValueError:
        quality = 0.0
    return name, quality if 0 <= quality <= 1 else 0.0


def _quality(offer: str, ranges: dict[str, float]) -> float:
    """The most specific range that covers the offer decides."""
    family = offer.split("/")[0]
    return next((ranges[r] for r in (offer, f"{family}/*", "*/*") if r in ranges), 0.0)
