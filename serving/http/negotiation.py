"""The Accept header: which of the offered media types a client wants most."""

from __future__ import annotations

from serving.http.problems import Problem

JSON, NPY = "application/json", "application/x-npy"


def negotiated(accept: str | None, *offers: str) -> str:
    """The offer of the highest quality; among equals the first.

    Raises:
        Problem: 406, none is accepted.
    """
    ranges: dict[str, float] = {}
    for part in (accept or "*/*").split(","):  # application/json;q=0.5
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        given = [word[2:] for word in parameters if word.startswith("q=")]
        try:
            wanted = float(given[0]) if given else 1.0
        except ValueError:
            wanted = 0.0
        ranges[name] = wanted if 0 <= wanted <= 1 else 0.0

    qualities = []
    for offer in offers:  # the most specific range that covers it decides
        covering = (offer, f"{offer.split('/')[0]}/*", "*/*")
        qualities.append(next((ranges[r] for r in covering if r in ranges), 0.0))
    best = max(qualities)
    if best == 0:
        raise Problem(406, "not_acceptable", f"this answer comes as {' or '.join(offers)}")
    return offers[qualities.index(best)]
