"""Images as a caller hands them over: paths, bytes, PIL images, arrays -> what a model takes.

Lists of any length are read a batch at a time; what cannot be read is raised, or skipped and
reported (`Skipped`).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from augself_hub.errors import AugSelfError, ImageError, UsageError
from augself_hub.images.files import one_line, read_file
from augself_hub.neighbours import unit
from augself_hub.preprocess import Preprocessing, damage_named, preprocess, to_rgb
from augself_hub.progress import bar

GivenImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
Pair = Sequence[GivenImage]  # two: a, b
ON_ERROR = ("raise", "skip")
URLS = ("http://", "https://")
_KINDS = "a path, the bytes of an image file, a PIL image or an (H, W, 3) uint8 array"
Result = TypeVar("Result")


class Skipped(UserWarning):
    """Images of a list that could not be read and have no features, or pairs without differences.

    Attributes:
        reasons: the image's, or pair's, place in the list -> its name and what is wrong with it.
    """

    def __init__(self, reasons: dict[int, str], count: int, what: str = "image") -> None:
        few = "; ".join(list(reasons.values())[:3])
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        left = "rows are NaN" if what == "image" else "differences are None"
        super().__init__(
            f"{len(reasons)} of {count} {what}s cannot be read, and their {left}: {few}{more}"
        )
        self.reasons = reasons


def features_of(
    images: Iterable[GivenImage],
    prepare: Callable[[GivenImage], Any],
    compute: Callable[[list[Any]], np.ndarray],
    dim: int,
    *,
    batch: int,
    threads: int,
    normalize: bool = False,
    on_error: str = "raise",
    progress: bool | None = None,
) -> np.ndarray:
    """N images -> (N, D) float32 in their order; rows of images that were skipped are NaN.

    Args:
        prepare: an image -> what `compute` takes; on `threads` threads, a batch at a time.
        compute: up to `batch` prepared images -> (n, D).
        normalize: scale each row to length 1. progress: see `augself_hub.progress.bar`.

    Raises:
        UsageError: no list, or something in it that is no image.
        ImageError, AugSelfError: one cannot be read; says which.
    """
    refuse_other_than_list(images)
    reasons: dict[int, str] = {}
    rows = [np.empty((0, dim), np.float32)]
    read = partial(named, prepare=prepare)
    with closing(_read(images, read, batch, threads, on_error, progress, reasons)) as coming:
        for found in coming:
            there = np.array([one is not None for one in found])
            row = np.full((len(found), dim), np.nan, np.float32)
            if there.any():
                row[there] = compute([one for one in found if one is not None])
            rows.append(row)
    features = np.concatenate(rows)
    if reasons:
        warnings.warn(Skipped(dict(sorted(reasons.items())), len(features)), stacklevel=3)
    return unit(features) if normalize else features


def differences_of(
    pairs: Iterable[Pair],
    prepare: Callable[[GivenImage], Any],
    compute: Callable[[list[Any]], list[Result]],
    *,
    batch: int,
    threads: int,
    on_error: str = "raise",
    progress: bool | None = None,
) -> list[Result | None]:
    """What is said of N pairs, in their order; None of pairs that were skipped.

    Args:
        prepare: as of `features_of`.
        compute: 2 n prepared images, all first ones, then all second ones, of up to `batch` pairs
            -> what is said of each pair.

    Raises:
        UsageError: no list of pairs, or something in one that is no image.
        ImageError, AugSelfError: an image cannot be read; says of which pair.
    """
    refuse_other_than_pairs(pairs)
    reasons: dict[int, str] = {}
    said: list[Result | None] = []
    read = partial(both, partial(named, prepare=prepare))
    with closing(_read(pairs, read, batch, threads, on_error, progress, reasons, "pair")) as coming:
        for found in coming:
            there = [pair for pair in found if pair is not None]
            images = [pair[side] for side in (0, 1) for pair in there]
            answers = iter(compute(images) if images else [])
            said += [None if pair is None else next(answers) for pair in found]
    if reasons:
        warnings.warn(Skipped(dict(sorted(reasons.items())), len(said), "pair"), stacklevel=3)
    return said


def _read(
    items: Iterable[Any],
    read: Callable[[int, Any], Any],
    batch: int,
    threads: int,
    on_error: str,
    progress: bool | None,
    reasons: dict[int, str],
    what: str = "image",
) -> Generator[list[Any]]:
    """What `read` makes of each number and item, a batch at a time; None of what is skipped.

    Args:
        reasons: gets number -> what was wrong with what was skipped.
    """
    if on_error not in ON_ERROR:
        raise UsageError(f"on_error={on_error!r}: give raise or skip")

    def one_of(numbered: tuple[int, Any]) -> Any:
        try:
            return read(*numbered)
        except UsageError:
            raise
        except AugSelfError as error:
            if on_error == "raise":
                raise
            reasons[numbered[0]] = str(error)
            return None

    total = len(items) if isinstance(items, Sequence | np.ndarray) else None
    with ThreadPoolExecutor(threads) as pool, bar(total, what, progress) as shown:
        for some in batches(enumerate(items), batch):
            found = list(pool.map(one_of, some))
            yield found
            shown.update(len(found))


def batches(items: Iterable[Result], size: int) -> Iterator[list[Result]]:
    """Lists of `size` of them, the last one shorter."""
    coming = iter(items)
    while some := list(islice(coming, size)):
        yield some


def refuse_other_than_list(images: Any) -> None:
    """
    Raises:
        UsageError: a single image, or nothing that could be gone through.
    """
    single = isinstance(images, np.ndarray) and (
        images.ndim < 3 or (images.ndim == 3 and images.shape[2] in (3, 4))
    )
    if isinstance(images, np.ndarray) and images.ndim == 1:  # of paths, as pandas has a column
        single = images.size > 0 and images.dtype.kind not in "OUS"
    if single or isinstance(images, str | bytes | os.PathLike | Image.Image):
        raise UsageError("features takes a list of images: put the one into a list, [image]")
    if not isinstance(images, Iterable):
        raise UsageError(f"features takes a list of images, not {type(images).__name__}")


def refuse_other_than_pairs(pairs: Any) -> None:
    """
    Raises:
        UsageError: nothing that could be gone through pair by pair.
    """
    text = isinstance(pairs, str | bytes | os.PathLike | Image.Image | Mapping)
    if text or not isinstance(pairs, Iterable):
        raise UsageError(f"differences takes a list of pairs, [(a, b), ...], not {_kind(pairs)}")


def both(
    read: Callable[[str, GivenImage], Result], number: int | None, pair: Any
) -> tuple[Result, Result]:
    """What `read` makes of a and b, errors with the pair's place in its list, if it is in one.

    Raises:
        UsageError: it is no pair. Whatever `read` raises.
    """
    row = isinstance(pair, np.ndarray) and pair.ndim == 1  # of two paths, as of a pandas frame
    if not (isinstance(pair, tuple | list) or row) or len(pair) != 2:
        raise UsageError(f"pair {number} is no pair of images (a, b) but {_kind(pair)}")
    try:
        return read("a", pair[0]), read("b", pair[1])
    except AugSelfError as error:
        if number is None:
            raise
        raise type(error)(f"pair {number}: {error}") from error


def _kind(given: Any) -> str:
    """What it is, and how many there are in it."""
    length = f" of {len(given)}" if isinstance(given, Sized) else ""
    return f"{type(given).__name__}{length}"


def name_of(number: int | str, image: GivenImage) -> str:
    """A path, or the image's place in the list."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"


def named(number: int | str, image: GivenImage, prepare: Callable[[GivenImage], Result]) -> Result:
    """`prepare(image)`, its errors with the image's name.

    Raises:
        ImageError: it is no image that can be read. UsageError: it is none at all.
        AugSelfError: there is no such file, or it cannot be read.
    """
    try:
        return prepare(image)
    except (ImageError, UsageError) as error:
        raise type(error)(f"{name_of(number, image)}: {error}") from error
    except OSError as error:
        raise AugSelfError(f"{name_of(number, image)}: {one_line(error)}") from error


def prepared(image: GivenImage, preprocessing: Preprocessing) -> np.ndarray:
    """An image -> (S, S, 3) uint8, as the model sees it. Raises ImageError, UsageError, OSError."""
    if isinstance(image, str) and image.startswith(URLS):
        raise UsageError(
            "URLs are fetched by a server that allows their host, and by nobody else: "
            "augself serve --allow-url-host, then Client(...)"
        )
    if isinstance(image, str | os.PathLike):
        return preprocessing.prepare(read_file(Path(image)))
    if isinstance(image, bytes):
        return preprocessing.prepare(image)
    return preprocess(_rgb(image), preprocessing.size)


def encoded(image: GivenImage) -> bytes:
    """An image -> the bytes of an image file: files as they are, pixels without loss.

    Raises ImageError, UsageError, OSError.
    """
    if isinstance(image, str | os.PathLike):
        return read_file(Path(image))
    if isinstance(image, bytes):
        return image
    file = io.BytesIO()
    _rgb(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _rgb(image: Any) -> Image.Image:
    """A PIL image or an array, upright. Raises as `encoded` does."""
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise UsageError("a PIL image of {} x {} pixels is no image".format(*image.size))
        try:
            image.load()
        except OSError:
            raise
        except Exception as error:  # closed, or whatever a format's reader raises
            raise ImageError(f"the PIL image cannot be read: {error}") from error
        with damage_named():
            return to_rgb(image)
    given = type(image).__name__
    if isinstance(image, np.ndarray):
        colored = image.ndim == 3 and image.shape[2] in (3, 4)
        if image.dtype == np.uint8 and image.size and (image.ndim == 2 or colored):
            return to_rgb(Image.fromarray(image))
        given = f"{image.dtype} array of shape {image.shape}"
    raise UsageError(f"{given} is no image: give {_KINDS}")
