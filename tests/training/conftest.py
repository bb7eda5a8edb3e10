"""Small runs, small methods, and the Hub of the publishing tests for runs that are pushed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from augself_hub.augmentations.difference import Sizes, standardised
from augself_hub.augmentations.spec import Head, Policy
from training.run.settings import Settings

_SPEC = spec_from_file_location(
    "local_hub", Path(__file__).parents[1] / "augself_hub" / "conftest.py"
)
_MODULE = module_from_spec(_SPEC)
sys.modules["local_hub"] = _MODULE  # where its dataclasses look for their names
_SPEC.loader.exec_module(_MODULE)
local_hub = _MODULE.local_hub

SMALL: dict[str, dict[str, int]] = {
    "simsiam": {"width": 16, "bottleneck": 8},
    "moco": {"width": 8, "queue": 24},
    "simclr": {"width": 8},
    "byol": {"hidden": 16, "width": 8},
    "swav": {"hidden": 16, "width": 8, "prototypes": 6},
    "supervised": {},
}


@pytest.fixture(autouse=True)
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process export no graphs, which takes longer than they do.

    Graphs have tests of their own, and the run of test_pretraining.py, a process, exports them.
    """
    monkeypatch.setattr("training.run.publishing.find_spec", lambda name: None)


@pytest.fixture(autouse=True, scope="session")
def deviations() -> Iterator[None]:
    """The standard deviations of the same views are simulated once, not for every run."""
    known: dict[str, dict[str, Head]] = {}

    def once(
        heads: dict[str, Head],
        policy: Policy,
        convention: str,
        sizes: Sizes = ((1024, 1024),),
    ) -> dict[str, Head]:
        key = repr((heads, policy, convention, [tuple(size) for size in sizes]))
        if key not in known:
            known[key] = standardised(heads, policy, convention, sizes)
        return dict(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("augself_hub.modeling.objective.standardised", once)
        patch.setattr("training.run.resuming.standardised", once)
        yield


@pytest.fixture(scope="session")
def small_options() -> dict[str, dict[str, int]]:
    """Options of every method that make it small."""
    return SMALL


@pytest.fixture
def small_run(photo_folder: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a run on the 40 photographs in this process, with whatever a test changes."""

    def settings(name: str = "run", **changes: Any) -> Settings:
        small = {
            "data": str(photo_folder),
            "output": tmp_path / name,
            "encoder": "resnet18-w16",
            "size": 16,
            "batch_size": 8,
            "workers": 0,
            "report_to": (),
        }
        return Settings(**small | changes)

    return settings
