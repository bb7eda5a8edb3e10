"""How well a matcher reads place, size and mirroring off photographs it was not trained on.

    python -m research.matching photographs PACKAGES CORPUS PHOTOGRAPHS   whole ones, for table B
    python -m research.matching fit CORPUS PHOTOGRAPHS MODEL [NAME=VALUE ...]
    python -m research.matching calibrate CORPUS PHOTOGRAPHS MODEL        the errors of one that is
    python -m research.matching measure CORPUS PHOTOGRAPHS [MODEL]        the tables, as Markdown

CORPUS is what `python -m research.corpora` builds of the unpacked PACKAGES (research/data.md).
`fit` writes a matcher into the folder MODEL, fitted on the corpus's tiles and drawings and on boxes
of whole photographs; NAME is a field of MatcherSettings, or seed. Its errors are then calibrated on
the photographs of the development set, tiles and boxes, half of each; `calibrate` does that alone.
`measure` reads a folder with a matcher, the embedded model by default, on the other held-out
photographs. Table A is of their tiles, with pairs of views as in training; B of boxes of whole
ones, with a short side of 40 to 100% of the photograph's, as users' pairs have it.
research/matching.md has what came out.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from augself_hub.augmentations.difference import targets
from augself_hub.augmentations.matching import combined
from augself_hub.augmentations.sampling import Parameters, draw, pixel_box
from augself_hub.augmentations.spec import Policy, Spec
from augself_hub.differences import is_gray
from augself_hub.errors import AugSelfError
from augself_hub.folder import new_folder
from augself_hub.modeling.maps import MapPlace
from augself_hub.modeling.matcher import Matcher
from augself_hub.modeling.model import AugSelfModel
from augself_hub.preprocess import crop_resized
from research.corpora.building import HELD_OUT, JPEG_QUALITY, MANIFEST, PRETRAIN
from research.corpora.pictures import file_name, find
from training.data.batches import ViewsDataset
from training.data.sources import Images, open_images
from training.methods.matcher import calibrate, fit_matcher, overlap
from training.methods.pairs import EncodedViews, encoded
from training.run.matching import matcher_settings, save_matcher

SHORT_SIDE = 480  # of whole photographs as they are kept; 40% of it is three times a view
SHORTEST = 0.4  # side of a box of table B, in short sides of the photograph
PAIRS = 3000  # of a table
CALIBRATION = 3000  # pairs of either kind
DEVELOPMENT = "development/photographs"  # of a corpus: its classes are photographs
OVERLAP = 0.3  # intersection over union, of the second half of a table
OF = r"([^/]+)(-\d+){3}\.\w+$"  # `photograph` of tiles, as --group takes it
TILES_SEED, BOXES_SEED, BOXES_TIMES = 7, 9, 25  # of what is fitted on
NAMES = ("y", "x", "height", "width")
Answer = dict[str, Tensor]


class Boxes(ViewsDataset):
    """Views whose boxes, or more, are drawn in another way than the policy has it.

    Args:
        redraw: (parameters of both views, height and width of the image, generator) -> None;
            changes the parameters, two rows each, in place.
    """

    def __init__(
        self,
        images: Images,
        policy: Policy,
        seed: int,
        redraw: Callable[[Parameters, int, int, np.random.Generator], None],
    ) -> None:
        super().__init__(images, policy, seed)
        self.redraw = redraw

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        items = []
        for epoch, index in keys:
            image = self.read((epoch, index)).image
            w = draw(self.policy, (self.seed, epoch, index, [0, 1]), image.height, image.width)
            self.redraw(
                w, image.height, image.width, np.random.default_rng((self.seed, epoch, index))
            )
            crops = [
                crop_resized(image, pixel_box(box, *image.size[::-1]), self.policy.size)
                for box in w["crop"]
            ]
            w["colorless"] = np.array([is_gray(crop) for crop in crops])
            w1, w2 = ({n: v[[side]] for n, v in w.items()} for side in (0, 1))
            items.append({"crops": crops, "w1": w1, "w2": w2, "label": 0, "skipped": []})
        return items


def large(w: Parameters, height: int, width: int, random: np.random.Generator) -> None:
    """Boxes of 40 to 100% of the short side, up to a third longer one way, anywhere."""
    for box in w["crop"]:
        short = random.uniform(SHORTEST, 1) * min(height, width)
        long = short * np.exp(random.uniform(0, np.log(4 / 3)))
        h, w_ = (short, long) if random.random() < 0.5 else (long, short)
        h, w_ = min(h, height) / height, min(w_, width) / width
        box[:] = random.uniform(0, 1 - h), random.uniform(0, 1 - w_), h, w_


class TilesAndBoxes(ViewsDataset):
    """Tiles by the policy, then large boxes of whole photographs, each so many times."""

    def __init__(self, tiles: ViewsDataset, boxes: Boxes, times: int) -> None:
        super().__init__(tiles.images, tiles.policy, tiles.seed)
        self.tiles, self.boxes, self.times = tiles, boxes, times

    def __len__(self) -> int:
        return len(self.tiles) + self.times * len(self.boxes)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        items = []
        for epoch, index in keys:
            time, place = divmod(index - len(self.tiles), len(self.boxes))
            whole = [(epoch * self.times + time, place)]
            items += (
                self.tiles.__getitems__([(epoch, index)])
                if index < len(self.tiles)
                else self.boxes.__getitems__(whole)
            )
        return items


def identical(w: Parameters, *_: Any) -> None:
    for values in w.values():
        values[1] = values[0]


def mirror_image(w: Parameters, *_: Any) -> None:
    identical(w)
    w["flip"][1] = ~w["flip"][0]


@torch.no_grad()
def answered(matcher: Matcher, a: Tensor, b: Tensor) -> Answer:
    """What is served: both orders as one answer; maps (N, C, S, S) twice, in any precision."""
    parts = []
    for x, y in zip(a.split(256), b.split(256), strict=True):
        ab, ba = (vars(matcher(u.float(), v.float())) for u, v in ((x, y), (y, x)))
        parts.append(combined(ab, ba, matcher.std, matcher.shape.turns))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class Pairs:
    """Encoded pairs, what is true of them and what a matcher says."""

    def __init__(self, views: EncodedViews, spec: Spec, photographs: Sequence[str]) -> None:
        self.a, self.b = views.encodings.chunk(2)
        self.wa, self.wb = (
            {n: v.chunk(2)[side] for n, v in views.parameters.items()} for side in (0, 1)
        )
        self.crop, self.flip = (
            targets(kind, self.wa, self.wb, spec.policy, spec.convention)[0].float()
            for kind in ("crop", "flip")
        )
        self.overlap = overlap(self.wa, self.wb)
        names = [photographs[i] for i in views.picture.chunk(2)[0].tolist()]
        self.names = torch.tensor(np.unique(names, return_inverse=True)[1])

    def strangers(self) -> Tensor:
        """(N,) for every view a the row of a view b of another photograph."""
        random = torch.Generator().manual_seed(0)
        other = torch.arange(len(self.names))
        while (same := self.names[other] == self.names).any():
            other[same] = torch.randint(len(other), (int(same.sum()),), generator=random)
        return other


def measured(matcher: Matcher, pairs: Pairs) -> dict[str, Any]:
    """One of the tables: R^2 and accuracy, coverage of the stated errors, strangers."""
    said = answered(matcher, pairs.a, pairs.b)
    error = said["crop"] - pairs.crop
    mirrored = ((said["flip"] > 0.5) == (pairs.flip > 0.5)).float()
    found: dict[str, Any] = {}
    for name, rows in (("all", pairs.overlap >= 0), ("overlap", pairs.overlap > OVERLAP)):
        values = [error[rows] ** 2, pairs.crop[rows] ** 2, mirrored[rows]]
        found[name] = _with_intervals(torch.cat(values, 1).double(), pairs.names[rows])
        found[name]["pairs"] = int(rows.sum())
    common = pairs.overlap > 0  # of two boxes that have nothing in common nothing can be stated
    within = (error.abs() <= 1.96 * said["standard_error"]).double()[common]
    shared = pairs.overlap[common]
    quarter = torch.bucketize(shared, shared.quantile(torch.tensor([0.25, 0.5, 0.75])))
    size = pairs.crop[common].abs()
    largest = size >= size.quantile(0.9, dim=0)
    found["coverage"] = {
        "all": within.mean(0).tolist(),
        **{f"quarter {q + 1}": within[quarter == q].mean(0).tolist() for q in range(4)},
        "largest tenth": ((within * largest).sum(0) / largest.sum(0)).tolist(),
    }
    found["standard_error"] = said["standard_error"].square().mean(0).sqrt().tolist()
    found["rmse"] = error.square().mean(0).sqrt().tolist()
    sure = said["standard_error"] <= said["standard_error"].median(0).values
    found["r2 of the surer half"] = [
        float(1 - (error[m, k] ** 2).sum() / (pairs.crop[m, k] ** 2).sum())
        for k, m in enumerate(sure.T)
    ]
    two = answered(matcher, pairs.a, pairs.b[pairs.strangers()])["match"][:, 0]
    one = said["match"][:, 0]
    found["strangers"] = {
        "auc": auc(one, two),
        "found at 5% false alarms": float((two < one.quantile(0.05)).double().mean()),
        "auc, boxes with something in common": auc(one[common], two),
    }
    return found


def auc(one: Tensor, two: Tensor) -> float:
    """How often one of the first is above one of the second."""
    return float((one[:, None] > two).double().mean())


def _with_intervals(rows: Tensor, names: Tensor, resamples: int = 1000) -> dict[str, Any]:
    """Squared errors, squared targets and right answers (N, 9) -> values and 95% intervals.

    The intervals are the bootstrap's over photographs, whose pairs are alike.
    """
    sums = rows.new_zeros(int(names.max()) + 1, 10)
    sums.index_add_(0, names, torch.cat([rows, torch.ones_like(rows[:, :1])], 1))
    draws = torch.randint(
        len(sums), (resamples, len(sums)), generator=torch.Generator().manual_seed(0)
    )
    drawn = torch.stack([sums.sum(0), *(sums[d].sum(0) for d in draws)])
    values = torch.cat([1 - drawn[:, :4] / drawn[:, 4:8], drawn[:, 8:9] / drawn[:, 9:]], 1)
    bounds = values[1:].quantile(torch.tensor([0.025, 0.975], dtype=values.dtype), dim=0)
    return {
        name: {"value": float(values[0, i]), "interval": bounds[:, i].tolist()}
        for i, name in enumerate((*NAMES, "mirrored"))
    }


def copies(matcher: Matcher, same: Pairs, mirror: Pairs) -> dict[str, float]:
    """Pictures with themselves, and with their mirror images."""
    said = answered(matcher, same.a, same.b)
    off = (said["crop"].abs() / said["standard_error"]).max(dim=1).values
    turned = answered(matcher, mirror.a, mirror.b)
    return {
        "identical: 0 within a tenth of the error": float((off < 0.1).double().mean()),
        "identical: called mirrored": float((said["flip"] > 0.5).double().mean()),
        "identical: called two": float((said["match"] < 0.5).double().mean()),
        "mirror image: called mirrored": float((turned["flip"] > 0.5).double().mean()),
        "mirror image: rms of x": float(turned["crop"][:, 1].square().mean().sqrt()),
    }


class Bench:
    """The pairs that matchers of one encoder are measured on, encoded once.

    Args:
        model: its encoder and spec are taken.
        place: where its maps are.
        few, whole: held-out tiles, of which PAIRS at most are taken, and photographs.
    """

    def __init__(self, model: AugSelfModel, place: MapPlace, few: Images, whole: Images) -> None:
        spec, policy = model.spec, model.spec.policy
        keep = np.random.default_rng(0).permutation(len(few))[:PAIRS]
        few = few.at(sorted(keep.tolist()))
        each = -(-PAIRS // len(whole))

        def pairs(views: ViewsDataset, epochs: int) -> Pairs:
            keys = [(e, i) for i in range(len(views)) for e in range(epochs)]
            maps = encoded(model.encoder, views, spec, model.preprocessing, place, keys)
            return Pairs(maps, spec, [photograph(n) for n in views.images.names])

        self.tables = {
            "A": pairs(ViewsDataset(few, policy, 7), 1),
            "B": pairs(Boxes(whole, policy, 7, large), each),
        }
        half = few.at(range(0, len(few), 3))
        self.same, self.mirror = (
            pairs(Boxes(half, policy, 8, change), 1) for change in (identical, mirror_image)
        )

    def measure(self, matcher: Matcher) -> dict[str, Any]:
        tables = {name: measured(matcher, pairs) for name, pairs in self.tables.items()}
        return {**tables, "copies": copies(matcher, self.same, self.mirror)}


def photograph(name: str) -> str:
    """The photograph a tile is of: its name ends with short side, row and column."""
    return re.sub(r"(-\d+){3}$", "", Path(name).stem)


def table(found: dict[str, Any]) -> str:
    """What `Bench.measure` found, as Markdown."""
    lines = ["| | pairs | y | x | height | width | mirrored |", "|---|---|---|---|---|---|---|"]
    for name in ("A", "B"):
        for part, text in (("all", "all pairs"), ("overlap", f"IoU > {OVERLAP}")):
            row = found[name][part]
            cells = [_cell(row[n], 2) for n in NAMES] + [_cell(row["mirrored"], 3)]
            lines.append(f"| {name}, {text} | {row['pairs']:,} | {' | '.join(cells)} |")
    lines += ["", "| covered by 1.96 errors | y | x | height | width |", "|---|---|---|---|---|"]
    for name in ("A", "B"):
        for part, values in found[name]["coverage"].items():
            lines.append(f"| {name}, {part} | {' | '.join(f'{100 * v:.1f}%' for v in values)} |")
        half = " | ".join(f"{v:.2f}" for v in found[name]["r2 of the surer half"])
        lines.append(f"| {name}, R² of the surer half | {half} |")
    lines += ["", "| | |", "|---|---|"]
    for name in ("A", "B"):
        lines += [
            f"| {name}, strangers: {k} | {v:.3f} |" for k, v in found[name]["strangers"].items()
        ]
    lines += [f"| {k} | {v:.3f} |" for k, v in found["copies"].items()]
    return "\n".join(lines)


def _cell(entry: dict[str, Any], digits: int) -> str:
    low, high = entry["interval"]
    return f"{entry['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def write_photographs(packages: Path, corpus: Path, output: Path) -> None:
    """The whole photographs whose tiles are in a corpus, below output/pretrain and held-out."""
    files = json.loads((corpus / MANIFEST).read_text())["files"]
    pictures = {picture.name: picture for picture in find(packages)}
    with new_folder(output) as stage:
        for part in (PRETRAIN, HELD_OUT):
            (stage / part).mkdir()
            tiles = (n for n in files if n.startswith(f"{part}/") and n.endswith(".jpg"))
            for name in sorted({files[n]["source"] for n in tiles}):
                image = pictures[name].image()
                scale = SHORT_SIDE / min(image.size)
                size = (round(image.width * scale), round(image.height * scale))
                image = image.resize(size, Image.Resampling.LANCZOS)
                image.save(stage / part / f"{file_name(pictures[name])}.jpg", quality=JPEG_QUALITY)


def training_views(policy: Policy, corpus: Path, photographs: Path) -> TilesAndBoxes:
    """What a matcher is fitted on here: nine tenths tiles and drawings, the rest large boxes."""
    tiles, whole = (open_images(str(folder / PRETRAIN)) for folder in (corpus, photographs))
    boxes = Boxes(whole, policy, BOXES_SEED, large)
    return TilesAndBoxes(ViewsDataset(tiles, policy, TILES_SEED), boxes, BOXES_TIMES)


def held_out(corpus: Path, photographs: Path, development: bool) -> tuple[Images, Images]:
    """Tiles and whole photographs that are not fitted on: those of the development set, or others.

    Raises:
        AugSelfError: there are none.
    """
    chosen = {path.name for path in (corpus / DEVELOPMENT).glob("*/*")}
    found = []
    for folder in (corpus / HELD_OUT, photographs / HELD_OUT):
        images = open_images(str(folder))
        wanted = [
            n for n, name in enumerate(images.names) if (photograph(name) in chosen) is development
        ]
        if not wanted:
            which = "" if development else "but "
            raise AugSelfError(f"{folder} has no picture {which}of {corpus / DEVELOPMENT}")
        found.append(images.at(wanted))
    return found[0], found[1]


def calibrated(
    model: AugSelfModel, matcher: Matcher, place: MapPlace, few: Images, whole: Images
) -> None:
    """Makes the stated errors hold for pairs as in training and as users have them, half of each.

    Args:
        few, whole: tiles and photographs of the development set.
    """
    spec, kinds = model.spec, []
    for views in (
        ViewsDataset(few, spec.policy, TILES_SEED),
        Boxes(whole, spec.policy, BOXES_SEED, large),
    ):
        order = np.random.default_rng(0).permutation(len(views))[:CALIBRATION]
        each = -(-CALIBRATION // len(order))
        keys = [(epoch, int(index)) for index in order for epoch in range(each)]
        kinds.append(encoded(model.encoder, views, spec, model.preprocessing, place, keys))
    tiles, boxes = kinds
    both = EncodedViews(
        torch.cat([tiles.encodings, boxes.encodings]),
        {n: torch.cat([v, boxes.parameters[n]]) for n, v in tiles.parameters.items()},
        torch.cat([tiles.picture, boxes.picture + len(few)]),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        calibrate(matcher, both, spec)


def place_of(model: AugSelfModel) -> MapPlace:
    """Where a model's matcher takes its maps.

    Raises:
        AugSelfError: it has none.
    """
    if model.spec.matcher is None:
        raise AugSelfError("the model has no matcher: augself fit-matcher adds one")
    return MapPlace.of(model.spec.matcher)


def fit(corpus: Path, photographs: Path, folder: Path, options: dict[str, Any] | None) -> None:
    """Fit a matcher and write it into a model folder, with what the card says of it.

    Args:
        options: fields of MatcherSettings; seed. None: keep the one that is there, and calibrate
            its errors.
    """
    model = AugSelfModel.from_pretrained(folder)
    spec, seed = model.spec, (options or {}).pop("seed", 0)
    if options is None:
        place, matcher, further = place_of(model), model.matcher, False
    else:
        views = training_views(spec.policy, corpus, photographs)
        settings = matcher_settings(options)
        further = settings.go_on
        matcher, place = fit_matcher(
            model.encoder, views, spec, model.preprocessing, settings, seed, model.matcher
        )
    assert matcher is not None
    calibrated(model, matcher, place, *held_out(corpus, photographs, development=True))
    tiles, _ = held_out(corpus, photographs, development=False)
    measured_on = ViewsDataset(tiles.grouped(OF), spec.policy, seed)
    save_matcher(folder, matcher, place.level, measured_on, further)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["photographs", packages, corpus, output]:
            write_photographs(Path(packages), Path(corpus), Path(output))
        case ["fit", corpus, photographs, folder, *given] if all("=" in o for o in given):
            pairs = (option.split("=", 1) for option in given)
            options = {name: ast.literal_eval(value) for name, value in pairs}
            fit(Path(corpus), Path(photographs), Path(folder), options)
        case ["calibrate", corpus, photographs, folder]:
            fit(Path(corpus), Path(photographs), Path(folder), None)
        case ["measure", corpus, photographs, *model] if len(model) < 2:
            loaded = AugSelfModel.from_pretrained(*model)
            place = place_of(loaded)
            pictures = held_out(Path(corpus), Path(photographs), development=False)
            assert loaded.matcher is not None
            print(table(Bench(loaded, place, *pictures).measure(loaded.matcher)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(sys.argv[1:])
    except (AugSelfError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
