"""What several parts share: photographs, a complete tiny model, the command in this process."""

from __future__ import annotations

import dataclasses
import gc
import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "serving/demo/examples"


def pytest_configure(config: pytest.Config) -> None:
    """Files go to pytest-xdist's processes in the order below, not the one of most tests first.

    Each process has one core's worth of threads: two that wait for each other at every layer of a
    small model, on cores that are busy, take up to forty times as long as one.
    """
    config.option.loadscopereorder = False
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """One process more than cores: a fifth of the time servers, browsers and clocks are waited for.

    Four at most: each takes 2 to 3 GB. pytest-xdist's own variable says otherwise.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(4, 1 + (cores or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: after torch.compile a forked child cannot run autograd."""
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: no garbage is looked for meanwhile, nor there later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """What libraries, and processes that are started, leave in the system's temporary folder goes
    with the run.
    """
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture
def augself(capfd: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Runs the command in this process -> its exit status and what it printed."""
    from augself_hub.cli import main

    def run(*arguments: object) -> SimpleNamespace:
        status, _ = 0, capfd.readouterr()  # what fixtures and the test printed before
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code or 0
        printed = capfd.readouterr()
        return SimpleNamespace(status=status, out=printed.out, err=printed.err)

    return run


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """The photographs that ship with the demo: real JPEGs of various shapes."""
    return sorted(EXAMPLES.glob("*.jpg"))


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photographs: list[Path]) -> Path:
    """40 JPEGs and PNGs in two class sub-folders, cut from the photographs."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(40):
        image = Image.open(photographs[number % len(photographs)]).convert("RGB")
        side = int(random.integers(80, 160))
        left = int(random.integers(0, image.width - side))
        top = int(random.integers(0, image.height - side))
        tile = image.crop((left, top, left + side, top + side - number % 7))
        suffix = "png" if number % 5 == 0 else "jpg"
        path = folder / ("even" if number % 2 == 0 else "odd") / f"{number:02d}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        tile.save(path)
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Name, maker -> a folder of that name, made by the process of this run that asks first."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        place, unfinished = shared / name, shared / "unfinished" / name
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not place.exists():
                make(unfinished)
                unfinished.rename(place)
        return place

    return folder


@pytest.fixture(scope="session")
def tiny_model(made_once: Callable[..., Path]) -> Path:
    """A complete model folder with graphs: 32 px, 0.7 M weights, crop, color, flip; untrained."""
    return made_once("tiny", lambda folder: _untrained(folder, seed=0))


@pytest.fixture(scope="session")
def other_tiny_model(made_once: Callable[..., Path]) -> Path:
    """The same with other weights."""
    return made_once("other", lambda folder: _untrained(folder, seed=1))


@pytest.fixture(scope="session")
def matched_model(made_once: Callable[..., Path]) -> Path:
    """The first of them with a matcher of random weights, which tells mirrored pairs, and errors of
    each pair, of random weights as well.
    """
    return made_once("matched", lambda folder: _untrained(folder, seed=0, matcher=True))


def _untrained(folder: Path, seed: int, matcher: bool = False) -> None:
    import torch

    from augself_hub import AugSelfLoss, AugSelfModel
    from augself_hub.augmentations.spec import Policy
    from augself_hub.modeling.encoders import build_encoder
    from augself_hub.modeling.export import export_folder
    from augself_hub.modeling.views import IMAGENET_MEAN, IMAGENET_STD
    from augself_hub.preprocess import Preprocessing

    torch.manual_seed(seed)
    encoder = build_encoder("resnet18-w16", 32)
    loss = AugSelfLoss(encoder.dim, {"crop": 1, "color": 1, "flip": 1}, Policy(size=32))
    model = AugSelfModel(
        encoder.network, loss.heads, loss.spec, Preprocessing(32, IMAGENET_MEAN, IMAGENET_STD)
    )
    if matcher:
        model = _with_random_matcher(_with_random_uncertainty(model))
    model.save_pretrained(folder)
    export_folder(folder)


def _with_random_uncertainty(model: Any) -> Any:
    import torch

    from augself_hub import AugSelfModel
    from augself_hub.augmentations.spec import LOG_VARIANCE
    from augself_hub.modeling.model import AugSelfHeads

    spec = dataclasses.replace(model.spec, uncertainty=16)
    heads = AugSelfHeads(spec)
    heads.update(dict(model.heads.items()))
    with torch.no_grad():
        for parameter in heads[LOG_VARIANCE].parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
        heads[LOG_VARIANCE].slope.mul_(1.25)
        heads[LOG_VARIANCE].shift.add_(0.125)
    return AugSelfModel(model.encoder, heads, spec, model.preprocessing)


def _with_random_matcher(model: Any) -> Any:
    import torch

    from augself_hub.modeling.maps import find_map
    from augself_hub.modeling.matcher import Matcher, MatcherShape

    place = find_map(model.encoder, model.preprocessing.size)
    std = tuple(d.std for d in model.spec.heads["crop"].dimensions)
    matcher = Matcher(MatcherShape(place.channels, place.cells), std)
    with torch.no_grad():
        for parameter in matcher.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return model.with_matcher(matcher, place.level)
