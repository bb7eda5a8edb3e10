"""The words of labels and splits, and the columns that hold them."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from augself_hub.errors import AugSelfError, UsageError
from augself_hub.images.source import UNLABELED

MAX_NUMBER = 2**31  # a label is an int32 of the table
MAX_NAME = 1000  # letters of a class name

DECODES = ("exact", "fast")
LAYOUTS = ("images", "splits", "classes", "tars", "parquet", "dataset")
COLUMN_HELP = "Repeatable: which column of a table is image, label or split."
ROOT_HELP = "Paths in a table may lead into this folder too; else only below the table's own."
READ_AS_HELP = "What a folder is to be read as, where what is in it leaves a choice."

SPLIT_WORDS = {  # those of Hugging Face's imagefolder
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_IMAGE = (
    *("image", "path", "file_name", "file", "filename", "img", "image_path", "file_path"),
    *("filepath", "image_file", "image_file_path", "jpg", "jpeg", "png", "webp"),
)
_LABEL = (
    *("label", "class", "labels", "category", "target", "fine_label", "class_name"),
    *("class_label", "category_name", "label_name", "cls", "species"),
)
_SPLIT = ("split", "subset", "partition")


def split_of(word: str) -> str | None:
    """train, validation or test, whatever the spelling; None: the word is none of a split's."""
    return _SPLITS.get(word.strip().casefold())


def same_split(a: str | None, b: str) -> bool:
    return a is not None and (a == b or (split_of(a) or a) == (split_of(b) or b))


def splits_in_names(names: Sequence[str]) -> list[str | None]:
    """The splits of files such as train-00000-of-00002.parquet, where every name has just one.

    Words are cut at whatever is no letter, as Hugging Face's loaders do.
    """
    found = []
    for name in names:
        words = [w for w in re.split(r"[\W\d_]+", name.casefold()) if w in _SPLITS]
        found.append(words[0] if len({_SPLITS[word] for word in words}) == 1 else None)
    return found if all(found) else [None] * len(names)


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns; None: the first of the usual ones that is there."""

    image: str | None = None
    label: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, words: Sequence[str]) -> Columns:
        """`image=path`, `label=species` ... -> the columns.

        Raises:
            UsageError: a word that is none of these, a role that is given twice.
        """
        pairs = [word.partition("=")[::2] for word in words]
        if any(role not in cls.__dataclass_fields__ or not name for role, name in pairs):
            raise UsageError(f"--column {' '.join(words)}: write image=, label= or split=NAME")
        if len(dict(pairs)) < len(pairs):
            raise UsageError(f"--column {' '.join(words)}: name one column for each role")
        return cls(**dict(pairs))

    def found(
        self, there: Sequence[str], location: str, images: Sequence[str] = (), label: str = ""
    ) -> Columns:
        """The same for a table with these columns. Case does not matter.

        Args:
            images: columns whose type says that they hold images. label: one that holds classes.

        Raises:
            AugSelfError: a column that was named is not there, or none holds images.
        """
        for name in (self.image, self.label, self.split):
            if name is not None and name not in there:
                raise AugSelfError(f"{location} has no column {name!r}, only {', '.join(there)}")
        usual = _first(_IMAGE, there)
        image = self.image or (usual if usual in images or not images else images[0])
        if image is None:
            pairs = ", or read a and b with --pairs" if {"a", "b"} <= set(there) else ""
            raise AugSelfError(
                f"{location} has the columns {', '.join(there)}: name the images' with "
                f"--column image=NAME{pairs}"
            )
        rest = [name for name in there if name != image]
        label = self.label or _first(_LABEL, rest) or label or ""
        found = Columns(image, label or None, self.split or _first(_SPLIT, rest))
        refuse_twice((found.image, found.label, found.split), there, location)
        return found


USUAL = Columns()


def refuse_twice(wanted: Iterable[str | None], there: Sequence[str], location: str) -> None:
    """Raises AugSelfError where two columns have the name of one that is to be read."""
    for name in wanted:
        if name is not None and there.count(name) > 1:
            raise AugSelfError(f"{location} has {there.count(name)} columns {name}: rename one")


def _first(usual: Iterable[str], there: Sequence[str]) -> str | None:
    by_word = {name.strip().casefold(): name for name in reversed(there)}
    return next((by_word[word] for word in usual if word in by_word), None)


@dataclass(frozen=True)
class Labels:
    """How a label as it is written becomes a number.

    Args:
        classes: their names; empty: labels are class numbers and stay what they are.
        named: what is written is a name and not an index into them.
        strict: what is none of the classes is an error of its image; else no label.
    """

    classes: list[str]
    named: bool = False
    strict: bool = True

    @classmethod
    def of_values(cls, values: Iterable[Any]) -> Labels:
        """Whole numbers from 0 on stay numbers; anything else is names, sorted.

        Large numbers are names that are sorted by their size.
        """
        written = set()
        for value in values:
            with suppress(ValueError):  # the item that has it will say so
                written.add(written_label(value))
        written.discard(None)
        texts = [text for text in written if text is not None]
        if not all(text.isascii() and text.isdecimal() for text in texts):
            return cls(sorted(texts), named=True)
        if max(map(int, texts), default=0) < MAX_NUMBER:
            return cls([])
        return cls(sorted(texts, key=lambda text: (int(text), text)), named=True)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def number(self, value: Any) -> int | None:
        """What is written -> its number, None for no label.

        Raises:
            ValueError: it is none of the classes; the message says so.
        """
        try:
            text = written_label(value)
            return None if text is None else self._number(text)
        except ValueError:
            if self.strict:
                raise
            return None

    def numbers(self, written: Iterable[Any]) -> tuple[array[int], dict[int, str]]:
        """Of each its number, UNLABELED for no label; position -> why it is none of the classes."""
        found, problems = array("i"), dict[int, str]()
        for position, value in enumerate(written):
            number = None
            try:
                number = self.number(value)
            except ValueError as error:
                problems[position] = str(error)
            found.append(UNLABELED if number is None else number)
        return found, problems

    def _number(self, text: str) -> int:
        if self.named:
            if text not in self._index:
                raise ValueError(f"its label {text[:50]!r} is none of the classes")
            return self._index[text]
        most = len(self.classes) or MAX_NUMBER
        if not (text.isascii() and text.isdecimal()) or int(text) >= most:
            raise ValueError(f"its label {text[:50]!r} is no class number")
        return int(text)


def written_label(value: Any) -> str | None:
    """A label as text: whole numbers without a point, None for null, NaN, blank and -1.

    Raises:
        ValueError: what is no text and no whole number, bytes that are none, or what is too long.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"its label {value[:50]!r} is no UTF-8 text") from None
    if isinstance(value, str):
        value = value.strip()
        if len(value) > MAX_NAME:
            raise ValueError(f"its label has {len(value)} letters, more than {MAX_NAME}")
        return value if value not in ("", "-1") else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer()):
        return str(int(value)) if value >= 0 else None
    raise ValueError(f"its label is {type(value).__name__} {str(value)[:50]}, no class")
