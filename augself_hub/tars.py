"""Reading tars of samples, for training's sources and serving's: what both must see alike."""

from __future__ import annotations

import tarfile
from typing import Self


class StrictHeader(tarfile.TarInfo):
    """tarfile takes a damaged header for the archive's end; the images behind it would be lost."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from error


def key_and_suffix(path: str) -> tuple[str, str]:
    """a/b.seg.png -> a/b, .seg.png: WebDataset's sample and its part; a hidden file has no key."""
    folder, slash, base = path.rpartition("/")
    stem, _, kind = base.partition(".")
    return (folder + slash + stem if stem else ""), f".{kind.lower()}"
