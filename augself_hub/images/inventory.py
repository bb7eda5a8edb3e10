"""What a source holds: how many images of which classes and splits, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from augself_hub.terminal import shown

LONGEST = 100  # letters of a name in the few lines
SHOWN = 6  # classes, splits and reasons in the few lines; --json and the manifests have all


@dataclass(frozen=True)
class Inventory:
    """Found = used + left out; whoever makes one counts `found` on its own, and it is held here.

    Args:
        source: as the user gave it. kind: folder, list, tars, parquet, dataset ...
        found: files, samples or rows that were looked at; None: only reading tells.
        images: those that are used. What cannot be decoded is among them, and will be an error.
        classes: class name -> images. splits: split -> images.
        left_out: reason -> how many. examples: reason -> the first one's name.
        notes: what else the user should know, a line each: what was ambiguous, and what chooses.
    """

    source: str
    kind: str
    found: int | None = None
    images: int | None = None
    classes: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        left = sum(self.left_out.values())
        if self.found is not None and self.found != (self.images or 0) + left:
            raise RuntimeError(
                f"{self.source}: {self.found} found are not {self.images} used and {left} left out"
            )

    @property
    def unlabelled(self) -> int | None:
        return None if self.images is None else self.images - sum(self.classes.values())

    def record(self) -> dict[str, Any]:
        """For --json, settings.json and manifests."""
        names = ("source", "kind", "found", "images", "classes", "splits", "left_out", "examples")
        record = {name: getattr(self, name) for name in names}
        return {**record, "unlabelled": self.unlabelled, "notes": list(self.notes)}

    def text(self) -> str:
        """A few lines."""
        if self.images is None:
            lines = [f"{shown(self.source)} ({self.kind}): images are counted as they are read"]
        else:
            lines = [f"{shown(self.source)} ({self.kind}): {_count(self.images, 'image')}"]
        if self.classes:
            lines.append(f"  {_count(len(self.classes), 'class')}: {_most(self.classes)}")
            if self.unlabelled:
                lines[-1] += f"; {self.unlabelled} without a label"
        elif self.images:
            lines.append("  no labels")
        if self.splits:
            lines.append(f"  splits: {_most(self.splits)}")
        if self.left_out:
            lines.append(f"  left out: {_most(self.left_out, self.examples)}")
        return "\n".join([*lines, *(f"  note: {shown(note)}" for note in self.notes)])


def _count(number: int, word: str) -> str:
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{number} {word if number == 1 else plural}"


def _most(counts: Mapping[str, int], examples: Mapping[str, str] | None = None) -> str:
    parts = [
        f"{shown(name[:LONGEST])} {number}"
        + (f" ({shown(examples[name])})" if examples and name in examples else "")
        for name, number in list(counts.items())[:SHOWN]
    ]
    more = len(counts) - len(parts)
    return ", ".join([*parts, *([f"{more} more"] if more else [])])


class Tally:
    """Counts while a source is read: `found` apart from what becomes of it."""

    def __init__(self) -> None:
        self.found = 0
        self.left_out: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    @classmethod
    def of(cls, before: Inventory) -> Tally:
        """To go on counting, where a part of a source is chosen."""
        tally = cls()
        tally.found = before.found or 0
        tally.left_out.update(before.left_out)
        tally.examples.update(before.examples)
        return tally

    def leave_out(self, reason: str, name: str) -> None:
        self.left_out[reason] += 1
        self.examples.setdefault(reason, name)

    def inventory(
        self,
        source: str,
        kind: str,
        images: int | None,
        classes: Mapping[str, int],
        splits: Iterable[str | None] | Mapping[str, int],
        notes: Sequence[str] = (),
    ) -> Inventory:
        """Classes and reasons come out with the most frequent first, splits as they are met."""
        counted = splits if isinstance(splits, Mapping) else Counter(splits)
        return Inventory(
            source=source,
            kind=kind,
            found=None if images is None else self.found,
            images=images,
            classes=dict(classes),
            splits={name: number for name, number in counted.items() if name is not None},
            left_out=dict(self.left_out.most_common()),
            examples=self.examples,
            notes=tuple(notes),
        )
