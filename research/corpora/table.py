"""What one collection is made of: whole sub-sets of the packages, by their names.

The choices are explained in research/data.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from research.corpora.sets import LabelledSet

PRETRAIN_SHORT_SIDES = (1440, 960, 480, 240)


@dataclass(frozen=True)
class Table:
    """What is trained on and what is measured on; patterns are of names below usr/share.

    Args:
        packages: what is looked at; other pictures that lie there do not matter.
        sets: role (final, secondary, development) -> name -> labelled set. No picture of the
            development sets looks like one of the others, and none is trained on.
        photographs: what is cut into tiles to be trained on.
        kept_out: what is not trained on beside the pictures of the sets.
        left_out: what is used for nothing.
        tiles_apart: no tile that is trained on looks like anything that is measured on either.
    """

    packages: tuple[str, ...]
    sets: dict[str, dict[str, LabelledSet]]
    photographs: tuple[str, ...]
    kept_out: tuple[str, ...]
    left_out: tuple[str, ...]
    tiles_apart: bool = False


def clipart(*folders: str) -> tuple[str, ...]:
    """Everything below these folders of openclipart-png."""
    return tuple(f"openclipart/png/{folder}/*" for folder in folders)


def stamps(*folders: str) -> tuple[str, ...]:
    """Everything below these folders of tuxpaint-stamps-default."""
    return tuple(f"tuxpaint/stamps/{folder}/*" for folder in folders)
