"""The matcher of a run and of a folder: fitted, measured, published; refused where it cannot be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from augself_hub import AugSelfModel, fit_matcher
from augself_hub.augmentations.spec import MatchCalibration, Policy
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.folder import ENCODER, HEADS, MATCHER, read_manifest, read_spec, verify
from augself_hub.images import Columns, Options
from augself_hub.modeling.matcher import Matcher, MatcherShape
from training.data.batches import ViewsDataset
from training.data.drawing import halves
from training.data.sources import open_images
from training.methods.matcher import MatcherSettings
from training.monitoring.matching import TASK, matched_pairs, with_matched
from training.run import matching, pretraining
from training.run.images import opened
from training.run.settings import FROZEN, Settings

FEW = {"pairs": 64, "passes": 1, "batch": 32, "spared": 32}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pretraining, "PAIRS", 40)
    monkeypatch.setattr(matching, "PAIRS", 40)


def results_of(folder):
    results = json.loads((folder / "evaluation.json").read_text())["results"]
    return {r["name"]: r for r in results if r["task"] == TASK}


@pytest.fixture
def run(small_run):
    """A run of one step, and whatever a test changes."""

    def go(**changes):
        given = {"size": 32, "epochs": 1.0, "arguments": {"max_steps": 1}} | changes
        return pretraining.pretrain(small_run(**given))

    return go


@pytest.mark.parametrize("method", ["simsiam", FROZEN])
def test_a_run_is_given_one_where_it_is_asked_for(run, tiny_model, method):
    encoder = str(tiny_model) if method == FROZEN else "resnet18-w16"
    folder = run(method=method, encoder=encoder, matcher="after", matcher_options=FEW)
    spec = AugSelfModel.from_pretrained(verify(folder)).spec
    assert list(spec.matcher.heads) == ["crop", "flip"]
    assert MATCHER.as_posix() in read_manifest(folder)["files"]
    found = results_of(folder)
    assert found["crop x R^2"]["value"] == spec.matcher.heads["crop"].dimensions[1].score
    assert (
        found["flip mirrored accuracy"]["value"] == spec.matcher.heads["flip"].dimensions[0].score
    )
    assert 0 <= found["crop y: true values within the 95% interval of their pair"]["value"] <= 1
    assert "--matcher after --matcher-option pairs=64" in spec.provenance["command"]


def test_a_run_that_drew_few_pairs_says_that_it_has_none(run, caplog):
    with caplog.at_level("INFO"):
        folder = run()
    said = "no matcher: this run drew 8 pairs of views, fewer than the 2000 one needs"
    assert said in caplog.messages
    assert read_spec(folder).matcher is None and not (folder / MATCHER).exists()


def test_by_default_it_sees_as_many_pairs_as_the_run(run, monkeypatch, capfd):
    monkeypatch.setattr(matching, "FEWEST_PAIRS", 8)
    assert read_spec(run()).matcher is not None
    assert "fitting the matcher on 8 pairs of views of 38 images" in capfd.readouterr().out


def test_off_is_off(run, monkeypatch):
    monkeypatch.setattr(matching, "FEWEST_PAIRS", 0)
    assert read_spec(run(matcher="off")).matcher is None


def test_a_stream_gives_its_first_images(run, tmp_path, photo_folder):
    folder = run(
        data=str(photo_folder), stream=True, epoch_images=8, matcher="after", matcher_options=FEW
    )
    assert read_spec(folder).matcher is not None


REFUSED = {
    "paper": ({"convention": "paper"}, "--matcher after: convention paper has no matcher"),
    "no crop head": ({"augself": {"color": 1.0}}, "needs a crop head, for its unit: --augself"),
    "an option that is none": ({"matcher_options": {"wings": 2}}, "has no option 'wings'"),
    "no pairs": ({"matcher_options": {"pairs": 0}}, "pairs=0 must be a whole number above 0"),
    "half a pair": ({"matcher_options": {"pairs": 0.5}}, "pairs=0.5 must be a whole number"),
    "less than no decay": (
        {"matcher_options": {"decay": -0.5}},
        "decay=-0.5 must be a number of 0",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_be_had_of_is_refused_before_the_run(run, tmp_path, what):
    changes, said = REFUSED[what]
    with pytest.raises(UsageError, match=said):
        run(matcher="after", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("matcher", [None, "after"])
def test_an_encoder_without_maps(run, monkeypatch, caplog, matcher, tmp_path):
    """Refused by name where a matcher was asked for; else left out, which is said."""

    def none(network, size):
        raise UsageError("encoder type 'blind' gives no feature maps")

    monkeypatch.setattr(matching, "find_map", none)
    if matcher is not None:
        with pytest.raises(UsageError, match="--matcher after: encoder type 'blind'"):
            run(matcher=matcher)
        return
    with caplog.at_level("INFO"):
        folder = run()
    assert "no matcher: encoder type 'blind' gives no feature maps" in caplog.messages
    assert read_spec(folder).matcher is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"matcher": "between"}, "--matcher between: give off, after or joint"),
        (
            {"matcher": "joint", "method": FROZEN},
            "joint trains the encoder, which fit-heads leaves",
        ),
        ({"matcher": "off", "matcher_options": FEW}, "no effect with --matcher off"),
    ],
)
def test_settings_that_do_not_go_together(given, said):
    with pytest.raises(UsageError, match=said):
        Settings(data="photos", output="run", **given)


def test_the_encoder_of_a_run_is_what_it_is_without_one(run, tmp_path):
    """Matchers come after the run: the published encoder and heads are the same bytes."""
    with_one = run(name="a", matcher="after", matcher_options=FEW)
    without = run(name="b", matcher="off")
    for path in (ENCODER, HEADS):
        a, b = load_file(with_one / path), load_file(without / path)
        assert all(torch.equal(a[name], b[name]) for name in b)


# -- A folder that is there ------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_folder_is_given_one_and_keeps_the_rest(
    folder, tiny_model, photo_folder, augself, tmp_path
):
    done = augself(
        "fit-matcher", folder, "--data", photo_folder, "--matcher-option", "pairs=64",
        "--matcher-option", "passes=1", "--matcher-option", "batch=32",
        "--matcher-option", "spared=32",
    )  # fmt: skip
    assert done.status == 0 and done.out.splitlines()[-1] == f"wrote {folder}"
    assert verify(folder) == folder
    spec, before = read_spec(folder), read_spec(tiny_model)
    assert dataclasses.replace(spec, matcher=None) == before
    for path in (ENCODER, HEADS):
        assert (folder / path).read_bytes() == (tiny_model / path).read_bytes()
    # without the exporter the old graph, which gives no maps, must not stay
    assert not (folder / "onnx/features.onnx").exists()
    assert results_of(folder)["flip mirrored accuracy"]["pairs"] == 40


def test_fitted_again_it_is_replaced(folder, photo_folder):
    weights = []
    for seed in (0, 1, 1):
        fit_matcher(folder, photo_folder, held_out=photo_folder, seed=seed, options=FEW)
        weights.append((folder / MATCHER).read_bytes())
    assert weights[0] != weights[1] == weights[2]
    assert len([r for r in results_of(folder).values() if r["kind"] == "match"]) == 1
    assert isinstance(read_spec(folder).matcher.match, MatchCalibration)
    read = json.loads((folder / "evaluation.json").read_text())["inventories"]["fit-matcher"]
    assert read["data"]["images"] == read["held_out"]["images"] == 40


@pytest.mark.parametrize("what", ["no crop", "stream", "nothing"])
def test_a_folder_or_data_it_cannot_be_fitted_for(folder, photo_folder, tmp_path, what):
    data = {"stream": f"stream:{photo_folder}", "nothing": tmp_path / "none"}.get(
        what, photo_folder
    )
    if what == "no crop":
        model = AugSelfModel.from_pretrained(folder)
        heads = {kind: head for kind, head in model.spec.heads.items() if kind != "crop"}
        del model.heads["crop"]
        model.spec = dataclasses.replace(model.spec, heads=heads)
        folder = tmp_path / "other"
        model.save_pretrained(folder)
    before = read_manifest(folder)
    with pytest.raises(AugSelfError):
        fit_matcher(folder, data, options=FEW)
    assert read_manifest(folder) == before


def test_held_out_images_are_read_by_the_columns_that_were_named(photo_folder, tmp_path):
    """Of fit-matcher and fit-uncertainty, and of a run with --held-out."""
    paths = sorted(photo_folder.rglob("*.*"))
    for name, some in (("train", paths[5:]), ("held", paths[::4])):
        rows = [f"{path},{path.parent.name}\n" for path in some]
        (tmp_path / f"{name}.csv").write_text("view,kind\n" + "".join(rows))
    columns = ("image=view", "label=kind")
    data, held_out = (str(tmp_path / f"{name}.csv") for name in ("train", "held"))
    options = Options(Columns.parse(columns))
    spec = SimpleNamespace(policy=Policy(size=16))
    asked = [
        matching.views_for(spec, data, held_out, options, 0)[1].images,
        opened(Settings(data=data, output=tmp_path, held_out=held_out, column=columns))[1],
    ]
    for images in asked:
        assert len(images) == 10 and set(images.labels) == {0, 1}
        assert list(images.classes) == ["even", "odd"]


# -- What is measured ------------------------------------------------------------------------------


def test_what_is_measured_by_a_matcher_that_knows_nothing(tiny_model, photo_folder):
    """By hand: zero for crop is R^2 0, whatever the views; 1.96 std cover the true values."""
    model = AugSelfModel.from_pretrained(tiny_model)
    std = tuple(d.std for d in model.spec.heads["crop"].dimensions)
    matcher = Matcher(MatcherShape(16, 8), std)
    with torch.no_grad():
        matcher.scale.zero_()
    model = model.with_matcher(matcher, -4).eval()
    images = ViewsDataset(open_images(str(photo_folder)), model.spec.policy, 0)
    results = matched_pairs(model, images, 120)
    found = {r["dimension"]: r for r in results}
    for name in ("y", "x", "height", "width"):
        assert (
            found[name]["value"] == pytest.approx(0, abs=1e-6) and found[name]["learned"] is False
        )
        assert found[f"{name}_coverage"]["value"] == pytest.approx(0.95, abs=0.06)
    assert found["match"]["value"] == pytest.approx(0.5)  # its logit is 0 for every pair
    spec = with_matched(model.spec, results)
    assert spec.matcher.heads["crop"].dimensions[0].learned is False
    assert spec.matcher.match.auc == pytest.approx(0.5)
    assert spec.answering()["crop"][0] == "features"  # a matcher that has learned nothing of it
    assert model.spec.heads == spec.heads


# -- Trained with the encoder ----------------------------------------------------------------------


def test_a_joint_matcher_is_logged_monitored_published_and_named(run, tmp_path):
    folder = run(
        size=32,
        matcher="joint",
        matcher_options={"weight": 0.5},
        monitor_every=1.0,
        arguments={"max_steps": 4, "logging_steps": 1},
    )
    model = AugSelfModel.from_pretrained(verify(folder))
    assert list(model.spec.matcher.heads) == ["crop", "flip"]
    assert model.spec.provenance["matcher"] == "trained with the encoder"
    assert "| matcher | trained with the encoder |" in (folder / "README.md").read_text()
    assert "--matcher joint --matcher-option weight=0.5" in model.spec.provenance["command"]
    rows = json.loads((folder / "training_log.json").read_text())
    assert len([row for row in rows if "matcher" in row]) == 4
    assert any("eval_matcher_crop_x" in row and "eval_matcher_flip_mirrored" in row for row in rows)
    assert results_of(folder)["crop x R^2"]["pairs"] == 40
    # the encoder learns by it: with the same seed it ends elsewhere
    other = run(name="b", size=32, matcher="off", arguments={"max_steps": 4})
    a, b = (load_file(f / ENCODER)["embedder.embedder.convolution.weight"] for f in (folder, other))
    assert not torch.equal(a, b)


def test_a_folder_given_another_matcher_says_so(run, photo_folder):
    folder = run(size=32, matcher="joint")
    fit_matcher(folder, photo_folder, held_out=photo_folder, options=FEW)
    assert read_spec(folder).provenance["matcher"] == "fitted on the frozen encoder"


def test_a_matcher_goes_on_from_where_it_is(run, photo_folder):
    """At a rate that changes nothing the weights stay, and what it standardises by."""
    folder = run(size=32, matcher="joint")
    before = load_file(folder / MATCHER)
    there = {"held_out": photo_folder, "seed": 3}
    for _ in range(2):  # what is said of it is said once
        fit_matcher(folder, photo_folder, **there, options={**FEW, "go_on": True, "rate": 1e-9})
        assert read_spec(folder).provenance["matcher"] == (
            "trained with the encoder, then fitted further on the frozen encoder"
        )
    after = load_file(folder / MATCHER)
    learned = [n for n in before if n not in ("slope", "shift") and before[n].is_floating_point()]
    kept = [n for n in learned if "running" not in n]
    assert kept and all(torch.allclose(after[n], before[n], atol=1e-5) for n in kept)
    fit_matcher(folder, photo_folder, **there, options={**FEW, "go_on": True})
    assert not torch.allclose(load_file(folder / MATCHER)["scale"], before["scale"], atol=1e-5)


def test_without_a_matcher_there_is_nothing_to_go_on_from(folder, photo_folder, run):
    before = read_manifest(folder)
    with pytest.raises(UsageError, match="the model has no matcher to go on from"):
        fit_matcher(folder, photo_folder, options={**FEW, "go_on": True})
    assert read_manifest(folder) == before
    with pytest.raises(UsageError, match="go_on is of augself fit-matcher"):
        run(matcher_options={**FEW, "go_on": True})


JOINT_REFUSED = {
    "paper": ({"convention": "paper"}, "--matcher joint: convention paper has no matcher"),
    "no crop head": ({"augself": {"color": 1.0}}, "--matcher joint: a matcher needs a crop head"),
    "an option of the other": (
        {"matcher_options": {"pairs": 9}},
        "a joint matcher has no option 'pairs'; its options are: weight=0.25, rate=0.003",
    ),
    "no weight": ({"matcher_options": {"weight": 0}}, "weight=0 must be a number above 0"),
}


@pytest.mark.parametrize("what", JOINT_REFUSED)
def test_what_no_matcher_can_be_trained_with_is_refused_before_the_run(run, tmp_path, what):
    changes, said = JOINT_REFUSED[what]
    with pytest.raises(UsageError, match=said):
        run(matcher="joint", **changes)
    assert not (tmp_path / "run").exists()


def test_an_encoder_without_maps_cannot_be_trained_with_one(run, monkeypatch):
    def none(network, size):
        raise UsageError("encoder type 'blind' gives no feature maps")

    monkeypatch.setattr(matching, "find_map", none)
    with pytest.raises(UsageError, match="--matcher joint: encoder type 'blind'"):
        run(matcher="joint")


@pytest.mark.parametrize(
    ("began", "goes_on", "said"),
    [
        ({"matcher": "joint"}, {"matcher": "off"}, "started with matcher = joint, not off"),
        ({"matcher": "off"}, {"matcher": "joint"}, "started with matcher = off, not joint"),
        (
            {"matcher": "joint"},
            {"matcher": "joint", "matcher_options": {"weight": 0.5}},
            "started with matcher_options = ",
        ),
    ],
)
def test_a_run_goes_on_with_the_matcher_it_began_with(small_run, began, goes_on, said):
    given = {"size": 32, "epochs": 1.0, "arguments": {"max_steps": 1}}
    pretraining.pretrain(small_run(**given, **began))
    longer = {**given, "arguments": {"max_steps": 2}}
    with pytest.raises(AugSelfError, match=said):
        pretraining.pretrain(small_run(**longer, **goes_on), resume=True)


def test_errors_are_calibrated_on_half_of_the_held_out_pictures(run, photo_folder, monkeypatch):
    """And the matcher is measured on the others; of too few on all, uncalibrated."""
    seen = []
    calibrate = matching.calibrate
    monkeypatch.setattr(
        matching,
        "calibrate",
        lambda m, v, s: (seen.append(v.picture.tolist()), calibrate(m, v, s)),
    )
    measured = []
    pairs = pretraining.matched_pairs
    monkeypatch.setattr(
        pretraining,
        "matched_pairs",
        lambda m, i, n: (measured.append(i.images.names), pairs(m, i, n))[1],
    )
    folder = run(size=32, matcher="joint", held_out=str(photo_folder))
    (pictures,), names = seen, measured[-1]
    assert set(pictures) == set(range(20)) and len(names) == 20  # of forty photographs
    assert len(pictures) == 2 * MatcherSettings().spared
    whole = open_images(str(photo_folder))
    assert list(names) == [whole.names[i] for i in halves(whole)[1]]
    assert (load_file(folder / MATCHER)["shift"] != 0).any()
