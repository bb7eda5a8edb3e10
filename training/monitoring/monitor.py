"""The monitor: what a run is worth while it goes on, and what stops it.

Every few epochs, on images the run is not trained on: awareness of the heads, the k nearest
neighbours of frozen features where labels exist, and the features' standard deviation. Everything
is keyed and in evaluation mode, so that a run goes on as if nobody had looked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback

from augself_hub.augmentations.functional import normalise
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import Diverged, ImageError
from augself_hub.images.source import UNLABELED
from augself_hub.modeling.model import AugSelfModel
from augself_hub.preprocess import preprocess
from augself_hub.progress import counted
from training.data.batches import ViewsDataset
from training.data.sources import Images
from training.data.streams import Stream, labelled_images
from training.evaluation.examples import Examples
from training.evaluation.knn import knn
from training.methods.layers import all_reduce, world_size
from training.monitoring.awareness import TASK, Result, held_out_pairs
from training.monitoring.matching import matched_pairs

log = logging.getLogger(__name__)
PREFIX = "eval_"  # reporters put such names into a panel of their own
WATCHED_PAIRS, PAIRS_AN_IMAGE = 300, 10
KNOWN, NEIGHBORS = 1000, 20

WORSE = 2.0
COLLAPSED = 0.05
WINDOW = 20


class Monitor(TrainerCallback):
    """Logs an evaluation every so many steps, in the first process.

    Args:
        trainer: whose log it goes to.
        model: of the trained encoder and heads.
        held_out: images that are not trained on.
        known: labelled training images, if there are any.
        every: steps from one evaluation to the next.
    """

    def __init__(
        self,
        trainer: Any,
        model: Callable[[], AugSelfModel],
        held_out: ViewsDataset,
        known: Images | None,
        every: int,
    ) -> None:
        self.trainer, self.model, self.every = trainer, model, every
        self.held_out, self.known = held_out, known

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the step's checkpoint, so that a resumed run's log has it too."""
        if state.global_step % self.every or not state.is_world_process_zero:
            return
        pairs = min(WATCHED_PAIRS, PAIRS_AN_IMAGE * len(self.held_out))
        model = self.model()
        results = evaluate(model, self.held_out, self.known, pairs)
        results += matched_pairs(model, self.held_out, pairs)  # of a joint matcher
        self.trainer.model.train()
        if results:
            losses_too = control.should_log
            self.trainer.log({PREFIX + short_name(r): r["value"] for r in results})
            control.should_log = losses_too  # which a log of anything takes as done


def short_name(result: Result) -> str:
    """crop_x, matcher_crop_x, ..., knn, feature_std: the name of a result in the log."""
    if "dimension" not in result:
        return str(result["metric"])
    name = f"{result['kind']}_{result['dimension']}"
    return name if result["task"] == TASK else f"matcher_{name}"


def evaluate(
    model: AugSelfModel, held_out: ViewsDataset, known: Images | None, pairs: int
) -> list[Result]:
    """Awareness, feature_std and kNN accuracy; whatever the images do not allow is left out.

    Args:
        model: put into evaluation mode.
        known: labelled images whose classes the nearest neighbours vote for.
        pairs: of held-out views.
    """
    model.eval()
    results = held_out_pairs(model, held_out, pairs)
    y, labels = features(model, held_out.images)  # (N, D), (N,)
    if len(y) < 2:
        return results
    results.append(_result("feature std", "held-out images", "feature_std", feature_std(y), len(y)))
    near = None if known is None else knn_accuracy(*features(model, known), y, labels)
    return results if near is None else [*results, near]


def knn_accuracy(
    known: Tensor, classes: np.ndarray, y: Tensor, labels: np.ndarray
) -> Result | None:
    """The share of features y (N, D) whose known neighbours (M, D) have their label.

    None where fewer than two classes are known or no held-out image is of a known one.
    """
    asked = np.isin(labels, classes)
    if not asked.any() or len(set(classes.tolist())) < 2:
        return None
    test = Examples(y[asked].numpy(), labels[asked])
    k = min(NEIGHBORS, len(classes))
    found = knn(Examples(known.numpy(), classes), test, k)
    commonest = np.bincount(classes).argmax()
    name = f"held-out images among {len(classes)} training images, k = {k}"
    result = _result("kNN", name, "knn", float(found.correct.mean()), len(test))
    return {**result, "baseline": float((test.labels == commonest).mean())}


def _result(task: str, name: str, metric: str, value: Any, images: int) -> Result:
    return {"task": task, "name": name, "metric": metric, "value": float(value), "images": images}


@torch.no_grad()
def features(model: AugSelfModel, images: Images) -> tuple[Tensor, np.ndarray]:
    """Features (N, D) on the CPU and labels (N,) of the images that can be decoded."""
    device, settings = next(model.parameters()).device, model.preprocessing
    rows, labels = [torch.zeros(0, model.spec.features)], []
    for pixels, some in _batches(images, settings.size):
        x = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
        rows.append(model(normalise(x, settings.mean, settings.std)).features.float().cpu())
        labels += some
    return torch.cat(rows), np.array(labels, dtype=np.int64)


def _batches(images: Images, size: int, most: int = 100) -> Iterator[tuple[np.ndarray, list[int]]]:
    """(N, size, size, 3) uint8 pixels and N labels at a time."""
    rows = (range(start, min(start + most, len(images))) for start in range(0, len(images), most))
    for part in counted(rows, len(images), "taking features", "image"):
        pixels, labels = [], []
        for index in part:
            try:
                pixels.append(preprocess(images.read(index), size))
            except (ImageError, OSError):  # training names it
                continue
            labels.append(images.labels[index])
        if pixels:
            yield np.stack(pixels), labels


def known_images(images: Images | Stream, held_out: Images, seed: int) -> Images | None:
    """A keyed choice of labelled training images; of a stream, the first ones.

    None where there are none, and where their classes are not the held-out images'.
    """
    if list(images.classes) != list(held_out.classes):
        return None
    if isinstance(images, Stream):
        return labelled_images(images, KNOWN) or None
    labelled = [i for i, label in enumerate(images.labels) if label != UNLABELED]
    chosen = np.random.default_rng(seed).permutation(labelled)[:KNOWN]
    return images.at([int(i) for i in chosen]) if labelled else None


class Alarm:
    """Stops a run that has nothing to gain any more.

    It judges after every epoch, by the mean over the epoch's last half but never over fewer than
    WINDOW batches, so a run of fewer batches is not judged:

    - A regression head of convention `relative` costs 1 where it predicts zero and 2 where it
      predicts the difference of two other views: the right distribution, no knowledge. Above 2 it
      has diverged and the run stops. Between 1 and 2 it has not learned yet, which is said once
      and no more: a healthy run (SimCLR, 64 px, batch 128, 40 epochs) had crop at 1.04 to 1.14 for
      its first five epochs and at 0.87 in the end.
    - Features all alike, by `feature_std`, are a collapsed encoder. Newly initialised encoders
      have 0.66 to 0.93, the demonstration model has 0.72; below 0.05 the run stops.

    Args:
        frozen: whether the encoder is not trained, so that no other rate would mend it.
    """

    def __init__(self, spec: Spec, frozen: bool = False) -> None:
        regressions = {kind for kind, head in spec.heads.items() if head.type == "regression"}
        self.frozen = frozen
        self.heads = regressions if spec.convention == "relative" else set()
        self._rows: list[dict[str, Tensor]] = []
        self._new = 0
        self._warned: set[str] = set()

    def note(self, parts: dict[str, Tensor]) -> None:
        """The parts of one batch's loss and its feature_std, detached; nothing is computed."""
        self._rows.append(parts)
        self._new += 1

    def judge(self) -> None:
        """To be called at the end of an epoch, by every process.

        Raises:
            Diverged: a head diverged or the encoder collapsed.
        """
        window = max(WINDOW, self._new // 2)
        rows, enough = self._rows[-window:], len(self._rows) >= window
        self._rows, self._new = self._rows[-WINDOW:], 0
        if not enough:
            return
        for kind in sorted(self.heads):
            value = _mean(rows, kind)
            if value > WORSE:
                raise Diverged(
                    f"the {kind} head diverged: its error is {value:.3g} where predicting zero has "
                    f"1; lower --base-lr or the weight of {kind} in --augself"
                )
            if value > 1 and kind not in self._warned:
                self._warned.add(kind)
                log.warning(
                    "the %s head has learned nothing yet: error %.3f, predicting zero has 1",
                    kind,
                    value,
                )
        std = _mean(rows, "feature_std")
        if std < COLLAPSED:
            mend = "use another encoder" if self.frozen else "lower --base-lr or use another method"
            raise Diverged(
                "the encoder collapsed: its features are nearly all the same (feature_std "
                f"{std:.3f} below {COLLAPSED}); {mend}"
            )


def _mean(rows: list[dict[str, Tensor]], name: str) -> float:
    """Over the rows of all processes."""
    return float(all_reduce(torch.stack([row[name] for row in rows]).mean())) / world_size()


def feature_std(y: Tensor) -> Tensor:
    """Mean standard deviation per dimension of (N, D) L2-normalised features, times sqrt(D).

    1 where they point in all directions alike, 0 where they are all the same.
    """
    std: Tensor = F.normalize(y.float(), dim=1).std(dim=0).mean() * y.shape[1] ** 0.5
    return std
