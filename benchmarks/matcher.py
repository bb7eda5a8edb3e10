"""What the matcher adds to the time of a pair: both orders, on one thread.

    python benchmarks/matcher.py [--rounds N]

Two pictures of the model's size are encoded and compared, by the heads on features alone and by
these and the matcher, in turns. It is CPU time, which other work on the machine changes least. The
embedded model has a matcher; a ResNet-50 at 224 pixels gets one, and both are untrained: speed does
not depend on the weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from findings import Findings, machine, quartiles

from augself_hub.augmentations.spec import Policy
from augself_hub.modeling.encoders import build_encoder, preprocessing_of
from augself_hub.modeling.export import export_folder
from augself_hub.modeling.maps import find_map
from augself_hub.modeling.matcher import Matcher, MatcherShape
from augself_hub.modeling.model import AugSelfModel
from augself_hub.modeling.objective import AugSelfLoss
from serving.inference.engine import Engine, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    findings = Findings("ms")
    findings.say(machine())
    with tempfile.TemporaryDirectory() as work:
        write_matched("resnet50", 224, Path(work) / "resnet50")
        rows = [
            row("embedded, 64 px", load(threads=1), rounds, repeats=40),
            row("ResNet-50, 224 px", load(str(Path(work) / "resnet50"), threads=1), rounds, 1),
        ]
    heads = ["CPU ms a pair", "features and heads", "and the matcher", "added", "share"]
    findings.table(heads, rows)


def write_matched(encoder: str, side: int, folder: Path) -> None:
    """An untrained model folder with heads, a matcher and its graphs."""
    built = build_encoder(encoder, side)
    loss = AugSelfLoss(built.dim, {"crop": 1, "color": 1, "flip": 1}, Policy(size=side))
    model = AugSelfModel(built.network, loss.heads, loss.spec, preprocessing_of(encoder, side))
    place = find_map(model.encoder, side)
    std = tuple(d.std for d in model.spec.heads["crop"].dimensions)
    matcher = Matcher(MatcherShape(place.channels, place.cells), std)
    model.with_matcher(matcher, place.level).eval().save_pretrained(folder)
    export_folder(folder)


def row(name: str, engine: Engine, rounds: int, repeats: int) -> list[str]:
    """Median and quartiles of a pair's CPU milliseconds, either way in turns."""
    side = engine.preprocessing.size
    images = list(np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8))

    def by_heads() -> None:
        features = engine.features(images)
        engine.differences(features[:1], features[1:])

    def by_both() -> None:
        encoded = engine.encode(images)
        engine.predict_pair(encoded[:1], encoded[1:])

    ways: tuple[Callable[[], None], ...] = (by_heads, by_both)
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for way, taken in zip(ways, times, strict=True):
            began = time.process_time()
            for _ in range(repeats):
                way()
            taken.append((time.process_time() - began) / repeats * 1e3)
    before, after = (quartiles(taken[1:]) for taken in times)
    added = quartiles([b - a for a, b in zip(*(taken[1:] for taken in times), strict=True)])
    share = f"{100 * added[1] / before[1]:.0f}%"
    return [
        name,
        *(f"{m:.2f} ({low:.2f} to {high:.2f})" for low, m, high in (before, after, added)),
        share,
    ]


if __name__ == "__main__":
    main()
