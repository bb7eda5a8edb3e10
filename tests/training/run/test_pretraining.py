"""The main job as a process: a folder of real JPEGs in, a model folder out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from augself_hub import AugSelfLoss, AugSelfModel
from augself_hub.augmentations.spec import Policy
from augself_hub.cli import main
from augself_hub.folder import read_spec, verify
from augself_hub.images.source import UNLABELED
from training import commands
from training.data.sources import Images
from training.run.images import split

SMALL = [
    "--encoder",
    "resnet18-w16",
    "--size",
    "32",
    "--batch-size",
    "8",
    "--epochs",
    "2",
    "--workers",
    "0",
]


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Call `augself pretrain` in this process: expected exit status -> what it says."""

    def call(status: int, *arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["pretrain", *map(str, arguments)])
        assert stopped.value.code == status
        return capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def run(photo_folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "first"
    command = [sys.executable, "-m", "augself_hub.cli", "pretrain", "--data", str(photo_folder)]
    command += ["--output", str(output), *SMALL, "--set", "logging_steps=2"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "images/s" in process.stdout
    assert process.stdout.splitlines()[-1] == f"wrote {output / 'model'}"
    return output


def test_a_run_ends_with_a_complete_model_folder(run):
    folder = verify(run / "model")
    expected = {
        "config.json", "model.safetensors", "preprocessor_config.json", "evaluation.json",
        "training_log.json", "curves.png", "README.md", "augself/config.json",
        "augself/model.safetensors", "augself/manifest.json", "onnx/features.onnx",
        "onnx/heads.onnx",
    }  # fmt: skip
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == expected


def test_the_model_knows_its_held_out_errors(run):
    results = json.loads((run / "model/evaluation.json").read_text())["results"]
    pairs = [r for r in results if r["task"] == "held-out pairs"]
    assert {r["kind"] for r in pairs} == {"crop", "color"}
    assert all(r["pairs"] > 0 for r in pairs)
    others = {r["task"]: r for r in results if r["task"] != "held-out pairs"}
    assert set(others) == {"feature std", "kNN"}
    assert 0 < others["feature std"]["value"] < 1.5
    assert 0 <= others["kNN"]["value"] <= 1
    assert others["kNN"]["images"] == 2  # 5% of 40
    spec = AugSelfModel.from_pretrained(run / "model").spec
    assert all(d.standard_error > 0 for h in spec.heads.values() for d in h.dimensions)


def test_the_card_says_how_it_was_made(run):
    provenance = read_spec(run / "model").provenance
    assert provenance["command"].startswith("augself pretrain --data photos")
    assert provenance["steps"] == 8
    assert provenance["seconds"] >= 0
    assert "| command | augself pretrain" in (run / "model/README.md").read_text()


def test_losses_and_curves_are_logged(run):
    history = json.loads((run / "model/training_log.json").read_text())
    steps = [row for row in history if "loss" in row]
    assert {"method", "crop", "color"} <= set(steps[0])
    assert list(run.glob("runs/*/events.out.tfevents*"))


def test_checkpoints_hold_no_pickled_settings(run):
    for checkpoint in run.glob("checkpoint-*"):
        assert not (checkpoint / "training_args.bin").exists()


def test_corrupt_images_are_named_and_skipped(photo_folder, tmp_path, augself, caplog):
    data = tmp_path / "photos"
    shutil.copytree(photo_folder, data)
    for name in ("even/00.png", "odd/17.jpg", "odd/33.jpg"):
        (data / name).write_bytes((data / name).read_bytes()[:-40])
    done = augself("pretrain", "--data", data, "--output", tmp_path / "run", *SMALL)
    assert done.status == 0, done.err
    assert re.search(r"skipped .*/(00.png|17.jpg|33.jpg): it cannot be decoded", caplog.text)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--method", "magic"], 2, "unknown method 'magic': use simsiam, moco"),
        (["--encoder", "magic"], 2, "unknown encoder 'magic': use resnet18"),
        (["--augself", "cutout=1"], 2, "unknown augmentation 'cutout': use crop"),
        (["--augself", "crop=high"], 2, "'crop=high' is not of the form crop=1,color=0.5"),
        (["--set", "warmup=3"], 2, "--set warmup: there is no such field; there are"),
        (["--set", "learning_rate=3"], 2, "learning_rate would have no effect: give --base-lr"),
        (["--set", "warmup_steps=2"], 2, "warmup_steps would have no effect: give --warmup-epochs"),
        (["--set", "optim=adamw_torch"], 2, "optim would have no effect: give --optimizer"),
        (["--set", "save_only_model=True"], 2, "a run could not be resumed"),
        (["--set", "gradient_checkpointing=True"], 2, "give gradient_accumulation_steps"),
        (["--set", "bf16=True", "--set", "bf16=False"], 2, "bf16 is given twice: give it once"),
        (["--batch-size", "0"], 2, "--batch-size 0: give a whole number of 1 or more"),
        (["--batch-size", "1"], 2, "batch norm and feature_std need 2"),
        (["--batch-size", "-8"], 2, "--batch-size -8: give a whole number of 1 or more"),
        (["--epochs", "0"], 2, "--epochs 0.0: give a number above 0"),
        (["--epochs", "nan"], 2, "--epochs nan: give a number above 0"),
        (["--epochs", "inf"], 2, "--epochs inf: give a number above 0"),
        (["--seed", "-1"], 2, "--seed -1: give a whole number from 0 to"),
        (["--workers", "-1"], 2, "--workers -1: give a whole number of 0 or more"),
        (["--size", "0"], 2, "--size 0: give a whole number of 8 or more"),
        (["--base-lr", "-0.1"], 2, "--base-lr -0.1: give a number above 0"),
        (["--base-lr", "nan"], 2, "--base-lr nan: give a number above 0"),
        (["--weight-decay", "-1"], 2, "--weight-decay -1.0: give a number of 0 or more"),
        (["--max-skipped", "1.5"], 2, "--max-skipped 1.5: give a number from 0 to 1"),
        (["--monitor-every", "-1"], 2, "--monitor-every -1.0: give a number of 0 or more"),
        (["--epoch-images", "0"], 2, "--epoch-images 0: give a whole number of 1 or more"),
        (["--warmup-epochs", "2"], 2, "--warmup-epochs 2 leaves nothing of --epochs 2"),
        (["--optimizer", "adam"], 2, "--optimizer adam: give sgd, adamw or lars"),
        (["--schedule", "linear"], 2, "--schedule linear: give cosine or constant"),
        (["--augself", "crop=-1"], 2, "the weight of crop is -1.0: give a number above 0"),
        (["--augself", "crop=nan"], 2, "the weight of crop is nan: give a number above 0"),
        (["--augself", "crop=0"], 2, "the weight of crop is 0.0: give a number above 0"),
        (["--augself", "crop=1,crop=2"], 2, "crop is given twice: give it once"),
        (["--convention", "mine"], 2, "unknown convention 'mine': use one of relative, paper"),
        (["--private"], 2, "--private would have no effect: give --push-to-hub"),
        (["--classes", "nowhere.txt"], 2, "--classes nowhere.txt: there is no such file"),
        (["--method", "frozen"], 2, "--method frozen is what augself fit-heads ENCODER does"),
        (["--batch-size", "4000"], 1, "fewer than one batch of 4000"),
        (["--method-option", "depth=3"], 2, "simsiam has no option 'depth'; its options are"),
        (["--policy", "blur=2"], 2, "blur of the views would be 2.0"),
        (["--recipe", "large"], 2, "unknown recipe 'large'"),
        (["--report-to", "paper"], 2, "unknown reporter 'paper'"),
        (["--normalization", "cifar"], 2, "--normalization cifar: give imagenet or stl10"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_leaves_nothing(
    photo_folder, tmp_path, refused, arguments, status, message, monkeypatch
):
    """Nothing is read either, but where the number of images is what is wrong."""
    if status == 2:
        monkeypatch.setattr(
            "training.run.images.open_images", lambda _: pytest.fail("it reads images")
        )
    output = tmp_path / "run"
    error = refused(status, "--data", photo_folder, "--output", output, *SMALL, *arguments)
    assert message in error
    assert not output.exists()


def test_bad_folders_are_one_line(tmp_path, refused):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"nothing")
    for data, message in (
        (tmp_path / "missing", "does not exist: give a folder"),
        (empty, "holds no image"),
        (broken, "none of the images can be decoded"),
    ):
        error = refused(1, "--data", data, "--output", tmp_path / "run", *SMALL)
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_an_output_that_exists_is_kept(run, photo_folder, refused):
    before = sorted(run.rglob("*"))
    error = refused(1, "--data", photo_folder, "--output", run, *SMALL)
    assert "exists: choose another --output" in error
    assert sorted(run.rglob("*")) == before


def test_a_normalization_is_stored_with_the_model(photo_folder, tmp_path, monkeypatch):
    """The processor's file is what every reader takes it from."""
    monkeypatch.setattr("training.run.pretraining.PAIRS", 20)
    output = tmp_path / "run"
    options = [*SMALL, "--normalization=stl10", "--color-strength=2", "--report-to=none"]
    main(["pretrain", f"--data={photo_folder}", f"--output={output}", *options])
    model = AugSelfModel.from_pretrained(output / "model")
    assert model.preprocessing.mean == (0.43, 0.42, 0.39)
    assert model.preprocessing.std == (0.27, 0.26, 0.27)
    assert (model.spec.policy.brightness, model.spec.policy.gray) == (0.8, 0.4)
    usual = AugSelfLoss(4, {"color": 1}, Policy(size=32)).spec.heads["color"].dimensions
    for dimension, ordinary in zip(model.spec.heads["color"].dimensions, usual, strict=True):
        assert dimension.std > 1.5 * ordinary.std


def test_more_unreadable_images_than_allowed_stop_the_run(photo_folder, tmp_path, refused):
    data = tmp_path / "photos"
    shutil.copytree(photo_folder, data)
    for name in ("even/00.png", "odd/17.jpg", "odd/33.jpg"):
        (data / name).write_bytes(b"nothing")
    options = [*SMALL, "--report-to=none", "--max-skipped=0.02"]
    error = refused(1, "--data", data, "--output", tmp_path / "run", *options)
    assert re.search(r"of the data cannot be decoded, more than 2.0%: .* --max-skipped", error)


@pytest.mark.parametrize("command", ["pretrain", "fit-heads"])
def test_every_option_stands_under_a_heading_of_the_help(command, capsys):
    main([command, "--help"])
    shown = capsys.readouterr().out
    options = {"pretrain": commands.pretrain, "fit-heads": commands.fit_heads}[command].params
    for option in options:
        if isinstance(option, click.Option):
            assert option.opts[0] in shown
    lines = shown.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    groups = ["Images:", "Method:", "Views:", "Optimisation:", "Run:", "Publication:"]
    assert headings == [*groups, "Help:"]


def test_half_of_the_labelled_images_are_held_out_first():
    """STL-10 has 5000 labels among 105,000 images; the nearest neighbours need them."""
    labels = [UNLABELED] * 390 + [0, 1] * 5
    images = Images([str(i) for i in range(400)], labels, ["a", "b"], never)
    train, held_out = split(images, seed=0)
    assert len(held_out) == 20
    assert sum(label != UNLABELED for label in held_out.labels) == 5
    assert sum(label != UNLABELED for label in train.labels) == 5
    assert not set(train.names) & set(held_out.names)


def never(index):
    raise AssertionError("no image is read")
