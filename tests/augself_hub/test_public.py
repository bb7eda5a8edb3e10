"""The public functions: documented, typed, and with the errors of the command line."""

from __future__ import annotations

import inspect

import pytest
from click.testing import CliRunner
from PIL import Image

import augself_hub
from augself_hub.cli import augself
from augself_hub.errors import AugSelfError, UsageError

FUNCTIONS = (
    *("convert", "evaluate", "export", "extract", "fit_heads", "fit_matcher", "pretrain", "pull"),
    *("fit_uncertainty", "push"),
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


PLACES = {  # every argument of a public name that is a path, a Hub id or a source
    "Encoder model": lambda hub, given: hub.Encoder(given),
    "AugSelfModel model": lambda hub, given: hub.AugSelfModel.from_pretrained(given),
    "Client url": lambda hub, given: hub.Client(given),
    "AsyncClient url": lambda hub, given: hub.AsyncClient(given),
    "FeatureTable folder": lambda hub, given: hub.FeatureTable.read(given),
    "convert checkpoint": lambda hub, given: hub.convert(given, "stl10", "o"),
    "convert output": lambda hub, given: hub.convert("c.pth", "stl10", given),
    "evaluate model": lambda hub, given: hub.evaluate(given, tasks=["knn"], datasets=["stl10"]),
    "evaluate a data set": lambda hub, given: hub.evaluate(tasks=["knn"], datasets=[given]),
    "evaluate data": lambda hub, given: hub.evaluate(tasks=["knn"], datasets=["stl10"], data=given),
    "export model": lambda hub, given: hub.export(given),
    "extract output": lambda hub, given: hub.extract("PHOTOS", given),
    "extract model": lambda hub, given: hub.extract("PHOTOS", "o", model=given),
    "extract image_root": lambda hub, given: hub.extract("PHOTOS", "o", image_root=given),
    "fit_heads encoder": lambda hub, given: hub.fit_heads(given, "d", "o"),
    "fit_heads data": lambda hub, given: hub.fit_heads("org/name", given, "o"),
    "fit_matcher model": lambda hub, given: hub.fit_matcher(given, "d"),
    "fit_uncertainty model": lambda hub, given: hub.fit_uncertainty(given, "d"),
    "pretrain data": lambda hub, given: hub.pretrain(given, "o"),
    "pretrain output": lambda hub, given: hub.pretrain("d", given),
    "pull model": lambda hub, given: hub.pull(given, "d"),
    "pull destination": lambda hub, given: hub.pull(None, given),
    "push folder": lambda hub, given: hub.push(given, "org/name"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "is of type int: give text or a pathlib.Path"),
        (b"PHOTOS", "is of type bytes: give text or a pathlib.Path"),
        (["PHOTOS"], "is of type list: give text or a pathlib.Path"),
        ("", "is empty: give a path, '.' for the working folder"),
    ],
    ids=["int", "bytes", "list", "empty"],
)
def test_what_is_no_path_is_refused_in_one_sentence(place, given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refusal:
        PLACES[place](augself_hub, given)
    assert str(refusal.value) == f"{place.partition(' ')[2]} {said}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["extract", "", "--output", "o"],
                                     ["pretrain", "--data", "", "--output", "o"],
                                     ["list-images", ""]])  # fmt: skip
def test_an_empty_source_is_not_the_working_folder_for_a_command(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    done = CliRunner().invoke(augself, command)
    assert isinstance(done.exception, UsageError) and "is empty" in str(done.exception)


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(AugSelfError):
        augself_hub.export(tmp_path / "nothing")
    with pytest.raises(AugSelfError, match="does not exist: give a folder"):
        augself_hub.pretrain(tmp_path / "nothing", tmp_path / "run")
    assert not (tmp_path / "run").exists()
