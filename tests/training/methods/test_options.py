"""Method options: a method's own hyperparameters by name."""

from __future__ import annotations

import pytest

from augself_hub.errors import UsageError
from training.methods import METHODS, checked_options, options_of

OPTIONS = {
    "simsiam": {"width": 2048, "bottleneck": 512, "layers": 2},
    "moco": {
        "width": 128, "queue": 65536, "momentum": 0.999, "temperature": 0.2,
        "projector_norm": False,
    },
    "simclr": {"width": 128, "temperature": 0.2},
    "byol": {"hidden": 4096, "width": 256, "momentum": 0.996},
    "swav": {
        "hidden": 2048, "width": 128, "prototypes": 100, "temperature": 0.1, "epsilon": 0.05,
        "iterations": 3, "scale": 0.5, "frozen_steps": 0,
    },
    "supervised": {},
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_options_are_its_constructor_s_with_the_paper_s_defaults(name):
    assert options_of(METHODS[name]) == OPTIONS[name]


def test_values_get_their_option_s_type():
    options = checked_options("moco", METHODS["moco"], {"temperature": 1, "queue": 512})
    assert options == {"temperature": 1.0, "queue": 512}
    assert type(options["temperature"]) is float


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        (
            "simsiam",
            {"temperature": 0.2},
            "simsiam has no option 'temperature'; .* width=2048, bottleneck=512, layers=2",
        ),
        ("supervised", {"classes": 3}, "supervised has no option 'classes'; its options are: none"),
        ("simsiam", {"layers": 2.5}, "simsiam option layers=2.5 must be a whole number above 0"),
        ("simsiam", {"layers": True}, "layers=True must be a whole number"),
        ("simclr", {"temperature": "warm"}, "temperature=warm must be a number above 0"),
        ("simclr", {"temperature": 0}, "temperature=0 must be a number above 0"),
        ("moco", {"projector_norm": 1}, "moco option projector_norm=1 must be True or False"),
        ("swav", {"frozen_steps": -1}, "frozen_steps=-1 must be a whole number of 0 or more"),
        ("byol", {"momentum": 1.5}, "momentum=1.5 must be a number above 0 up to 1"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_options_are_named(name, given, said):
    with pytest.raises(UsageError, match=said):
        checked_options(name, METHODS[name], given)
