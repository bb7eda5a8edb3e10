"""From candidates to the folder that ships: each step makes a folder or a file, once."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from augself_hub import card
from augself_hub.atomic import write_json
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.folder import files_of, verify
from augself_hub.modeling.api import export
from research import matching
from research.corpora.building import HELD_OUT, PRETRAIN
from research.study.beside import put_beside
from research.study.plan import DEVELOPMENT, Plan, Run, read_plan
from research.study.records import Record, mean_accuracy, read
from research.study.runs import settings_of
from research.study.schedule import Places, carry_out_all
from training.monitoring.marking import mark
from training.run.checkpoints import newest_valid, spent_until
from training.run.pretraining import MODEL, pretrain
from training.run.settings import JOINT, Settings
from training.run.uncertainty import add_uncertainty

HERE = Path(__file__).parent
CANDIDATES, FINAL = HERE / "plan.toml", HERE / "final.toml"
PHASE = "candidates"
PLAIN, WITH_MATCHER = "-plain", "-joint"  # ends of the names of an arm's twin, and of its other one
EVERY, LAST = 5, 25  # steps between checkpoints, and until the last, where an arm's time is taken
SHARE = 0.9  # of the hours left, for the final pair; the rest is for fitting and measuring
NAME = "augself_hub/pretrained"  # what the card calls the model
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Final:
    """final.toml.

    Args:
        hours: CPU time of candidates and final pair together.
        most_epochs, seed: of the final pair.
        transfer: points of the linear probe that a joint matcher may cost.
        gain: of the matcher's mean R^2, that it has to bring.
        megabytes: of the folder, at most.
        matcher: fields of MatcherSettings; joint: those that a joint one, fitted further, has else.
    """

    hours: float
    most_epochs: int
    seed: int
    transfer: float
    gain: float
    megabytes: float
    matcher: dict[str, Any] = field(default_factory=dict)
    joint: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Final:
        """Raises UsageError: not TOML, or something in it that is unknown."""
        try:
            return cls(**tomllib.loads(path.read_text()))
        except (tomllib.TOMLDecodeError, TypeError) as error:
            raise UsageError(f"{path} is not what final.toml has to be: {error}") from error


@dataclass(frozen=True)
class Choice:
    """What the development sets have chosen.

    Args:
        arm, twin: of the model, and of the same encoder without AugSelf.
        epochs: of either, that the hours left have room for.
        scores: arm -> mean linear probe on the development sets, percent.
        matchers: arm -> mean R^2 of its matcher over y, x, height and width.
    """

    arm: str
    twin: str
    epochs: int
    scores: dict[str, float]
    matchers: dict[str, float]


def choose(plan: Plan, final: Final, records: dict[str, Record]) -> Choice:
    """The arm with AugSelf of the best mean linear probe on the development sets.

    Its joint twin stands in its place if the matcher is better by `gain` and the probe worse by
    `transfer` at most. Epochs are what the rest of the hours has room for at the CPU seconds that
    the arm and its twin took an epoch, matcher included.

    Args:
        records: of every arm, by its name.

    Raises:
        AugSelfError: the hours have no room for an epoch.
    """
    scores = {arm: mean_accuracy(r, DEVELOPMENT) for arm, r in records.items()}
    matchers = {
        arm: sum(r["value"] for r in record["matcher_pairs"] if r["metric"] == "r_squared") / 4
        for arm, record in records.items()
        if record.get("matcher_pairs")
    }
    arms = [arm for arm in plan.arms if arm + PLAIN in plan.arms]
    best = max(arms, key=scores.__getitem__)
    joint, twin = best + WITH_MATCHER, best + PLAIN
    if (
        joint in scores
        and scores[joint] >= scores[best] - final.transfer
        and matchers[joint] >= matchers[best] + final.gain
    ):
        best = joint
    spent = sum(sum(r["cpu_seconds"].values()) for r in records.values())
    left = SHARE * (3600 * final.hours - spent)
    epoch = sum(records[a]["cpu_seconds"]["making"] / _epochs(plan, a) for a in (best, twin))
    epochs = min(final.most_epochs, int(left / epoch))
    if epochs < 1:
        raise AugSelfError(
            f"{final.hours:g} hours have no room for an epoch of {best} and {twin}, after "
            f"{spent / 3600:.1f} hours for the candidates: give more in final.toml"
        )
    return Choice(best, twin, epochs, scores, matchers)


def _epochs(plan: Plan, arm: str) -> float:
    epochs: float = {**plan.settings, **plan.arms[arm].settings}["epochs"]
    return epochs


def make(
    output: Path, corpus: Path, photographs: Path, records: Path, jobs: int, final: Final
) -> Path:
    """Every step that is not done yet.

    Args:
        output: candidates/ (runs), model/ and twin/ (runs of the final pair), then one folder after
            the other: stated/, matched/, quantised/, embedded/.
        corpus: of the first study (research/data.md). photographs: of `research.matching`.
        records: a JSON file of each candidate, and choice/choice.json.
        jobs: candidates side by side; of two and more also model and twin.

    Returns:
        output/embedded, to be copied to augself_hub/pretrained.

    Raises:
        AugSelfError: a candidate failed, the hours are spent, the folder is too large.
    """
    plan, places = read_plan(CANDIDATES), Places(CANDIDATES, output / PHASE, corpus, records)
    carry_out_all(plan, places, jobs)
    runs = plan.runs(plan.phase(PHASE), places.development_score)
    choice = choose(plan, final, {run.arm: read(places.record(run)) for run in runs})
    (records / "choice").mkdir(exist_ok=True)
    write_json(records / "choice" / "choice.json", dataclasses.asdict(choice))
    log.info("%s for %d epochs, beside %s", choice.arm, choice.epochs, choice.twin)
    model, twin = pair_settings(plan, choice, final, output, corpus)
    train_pair(model, twin, jobs)
    further = final.joint if model.matcher == JOINT else {}
    options = {**final.matcher, **further, "seed": final.seed}

    def state(folder: Path) -> None:
        """What the heads' errors cover and their figures, by photographs instead of tiles."""
        images, held_out = str(corpus / PRETRAIN), str(corpus / HELD_OUT)
        add_uncertainty(folder, images, held_out, seed=final.seed, group=matching.OF)
        mark(folder, held_out, NAME, matching.OF)

    stated = step(model.output / MODEL, output / "stated", state)
    matched = step(
        stated,
        output / "matched",
        lambda folder: matching.fit(corpus, photographs, folder, options),
    )
    quantised = step(
        matched,
        output / "quantised",
        lambda folder: export(folder, quantize="int8", calibration=str(corpus / PRETRAIN)),
    )

    def measure(folder: Path) -> None:
        put_beside(folder, twin.output / MODEL, model, corpus, output / "work")
        card.write(folder, NAME)

    embedded = step(quantised, output / "embedded", measure)
    size = sum((embedded / name).stat().st_size for name in files_of(embedded)) / 1e6
    if size > final.megabytes:
        raise AugSelfError(f"{embedded} has {size:.1f} MB, more than {final.megabytes:g}")
    return embedded


def pair_settings(
    plan: Plan, choice: Choice, final: Final, output: Path, corpus: Path
) -> tuple[Settings, Settings]:
    """Of model and twin: the candidates', for as long as there is time, by another seed."""
    found = []
    for name, arm in (("model", choice.arm), ("twin", choice.twin)):
        settings = settings_of(plan, Run(PHASE, arm, final.seed, None), output, corpus)
        after = {} if settings.matcher == JOINT else {"matcher": "off", "matcher_options": {}}
        changes = {"output": output / name, "epochs": float(choice.epochs), **after}
        found.append(dataclasses.replace(settings, **changes))
    return found[0], found[1]


def trained(settings: Settings) -> None:
    """A run, gone on with where there is one.

    Raises:
        SystemExit: SIGTERM stopped it after a checkpoint.
    """
    if (settings.output / MODEL).is_dir():
        return
    resume = newest_valid(settings.output) is not None
    if not resume:
        shutil.rmtree(settings.output, ignore_errors=True)
    pretrain(settings, resume)
    if not (settings.output / MODEL).is_dir():
        raise SystemExit(143)


def train_pair(model: Settings, twin: Settings, jobs: int) -> None:
    """Both runs; of two jobs the twin's in a process of its own, which ends when this one does.

    Raises:
        SystemExit: SIGTERM stopped them after a checkpoint of each.
        AugSelfError: the twin's run failed.
    """
    if jobs < 2:
        trained(model)
        trained(twin)
        return
    beside = multiprocessing.get_context("spawn").Process(target=_alone, args=(twin,))
    beside.start()
    try:
        trained(model)
        beside.join()
    finally:
        beside.terminate()
        beside.join()
    if not (twin.output / MODEL).is_dir():
        raise AugSelfError(f"the run in {twin.output} failed: see above, then start again")


def _alone(settings: Settings) -> None:
    torch.set_num_threads(1)
    trained(settings)


def step(source: Path, target: Path, change: Callable[[Path], Any]) -> Path:
    """A copy of a model folder with one change, which appears whole or not at all."""
    if not target.is_dir():
        log.info("%s", target.name)
        with tempfile.TemporaryDirectory(dir=target.parent) as place:
            copy = shutil.copytree(source, Path(place) / target.name)
            change(copy)
            copy.rename(target)
    return verify(target)


def seconds_of_an_image(settings: Settings) -> float:
    """CPU seconds of an image of a run: views, forward, backward, step; of one process.

    Of the steps from EVERY to LAST, checkpoints included; a real run, which is then stopped.
    """
    arguments = {**settings.arguments, "save_steps": EVERY, "save_total_limit": LAST}
    with tempfile.TemporaryDirectory() as parent:
        output = Path(parent) / "run"
        settings = dataclasses.replace(settings, output=output, arguments=arguments)
        ended = threading.Event()

        def stop() -> None:
            while not ended.wait(0.05):
                if (output / f"checkpoint-{LAST}").is_dir():
                    os.kill(os.getpid(), signal.SIGTERM)  # honoured between two steps
                    return

        watcher = threading.Thread(target=stop)
        watcher.start()
        try:
            pretrain(settings)
        finally:
            ended.set()
            watcher.join()
        first, last = (spent_until(output / f"checkpoint-{s}").cpu_seconds for s in (EVERY, LAST))
    return (last - first) / ((LAST - EVERY) * settings.batch_size)
