"""The public functions: documented, typed, and with the errors of the command line."""

from __future__ import annotations

import inspect

import pytest

import augself_hub
from augself_hub.errors import AugSelfError, UsageError

FUNCTIONS = (
    *("convert", "evaluate", "export", "extract", "fit_heads", "fit_matcher", "pretrain", "pull"),
    "push",
)


def test_every_name_is_found_and_said():
    assert {*FUNCTIONS} <= {*augself_hub.__all__}
    assert {*augself_hub.__all__} - {"__version__"} == {*augself_hub._EXPORTS}
    for name in augself_hub._EXPORTS:
        assert getattr(augself_hub, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        augself_hub.train  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_typed_and_documented_parameters(name):
    function = getattr(augself_hub, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda hub: hub.export("m", quantize="int4"), "--quantize int4: give int8 or fp16"),
        (lambda hub: hub.export("m", quantize="int8"), "needs real photographs: --calibration"),
        (lambda hub: hub.export("m", calibration="d"), "--calibration is read with --quantize"),
        (lambda hub: hub.export("m", require_speedup=2.0), "measured with --quantize int8 only"),
        (lambda hub: hub.evaluate("m", tasks=[], datasets=["x"]), "give at least one name"),
        (lambda hub: hub.evaluate("m", tasks="knn", datasets=["x"]), "--tasks knn: give at least"),
        (lambda hub: hub.evaluate("m", tasks=["nn"], datasets=["folder:x"]), "unknown task 'nn'"),
        (lambda hub: hub.evaluate("m", tasks=["knn"], datasets=["x"]), "x"),
        (lambda hub: hub.fit_heads("resnet18", "d", "o"), "resnet18 is a preset, untrained"),
    ],
)
def test_what_cannot_work_is_the_command_line_s_usage_error(call, said):
    with pytest.raises(UsageError, match=said):
        call(augself_hub)


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(AugSelfError):
        augself_hub.export(tmp_path / "nothing")
    with pytest.raises(AugSelfError, match="does not exist: give a folder"):
        augself_hub.pretrain(tmp_path / "nothing", tmp_path / "run")
    assert not (tmp_path / "run").exists()
