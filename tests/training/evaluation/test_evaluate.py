"""`augself evaluate` from a folder of images to a model's evaluation.json, card and charts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from transformers import Trainer, TrainingArguments

from augself_hub.augmentations.spec import Policy
from augself_hub.cli import augself
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.features import FeatureTable
from augself_hub.folder import EVALUATION, verify, write_manifest
from research.generated import sprites
from serving.extraction.pipeline import extract
from serving.inference.engine import load
from training.evaluation.awareness import awareness
from training.evaluation.cache import Model, Tables
from training.evaluation.compare import compare
from training.evaluation.datasets import open_dataset
from training.evaluation.evaluate import Plan, Unmeasured, evaluate, short_name
from training.evaluation.examples import majority_class
from training.evaluation.finetune import finetune
from training.evaluation.layouts import of_files
from training.evaluation.listing import png
from training.evaluation.tasks import TASKS, Subject, TaskSettings
from training.evaluation.views import CHANGES, changed, pairs


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "sprites"
    sprites(folder, 240)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Dark and bright red: any network can tell them apart."""
    folder = tmp_path_factory.mktemp("sets") / "plain"
    for name, least in (("dark", 20), ("bright", 180)):
        (folder / name).mkdir(parents=True)
        for i in range(60):
            Image.new("RGB", (32, 32), (least + i, 0, 0)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tables(tiny_model, cache) -> Tables:
    return Tables(Model.resolve(str(tiny_model)), cache, "cpu")


def subject(tables: Tables, folder: Path) -> Subject:
    images = open_dataset(f"folder:{folder}", None)
    return Subject(folder.name, images, tables.of(images), "top-1")


def run(*arguments: object, cache: Path) -> str:
    words = ["evaluate", *map(str, arguments), "--cache", str(cache), "--device", "cpu"]
    done = CliRunner().invoke(augself, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_results_go_into_the_model_folder_and_its_card(tiny_model, drawn, plain, cache, tmp_path):
    """Measured twice, a number stands once; the folder stays what its manifest says."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    old = {"task": "held-out pairs", "name": "crop y R^2", "metric": "r_squared", "value": 0.5}
    (model / EVALUATION).write_text(json.dumps({"protocol": "As told.", "results": [old]}))
    write_manifest(model)
    asked = ("--model", model, "--tasks", "linear,fewshot,knn,localization,retrieval")
    sets = f"folder:{drawn / 'shape'},folder:{plain}"
    options = ("--ways", "2", "--shots", "1", "--queries", "8", "--datasets", sets)
    printed = run(*asked, *options, cache=cache)
    assert "linear probe" in printed and "shape, 2-way 1-shot" in printed
    inventories = json.loads((model / EVALUATION).read_text())["inventories"]["evaluate"]
    assert list(inventories) == ["shape", "plain"]
    plains = inventories["plain"]
    assert plains["images"] == plains["found"] - sum(plains["left_out"].values()) == 120
    run(*asked[:3], "linear", *options[6:], cache=cache)
    results = json.loads((verify(model) / EVALUATION).read_text())["results"]
    assert results[0] == old
    assert len(results) == 1 + 5 + 4  # without boxes there is no localization
    probe = next(r for r in results if r["task"] == "linear probe" and r["dataset"] == "plain")
    assert (probe["value"], probe["baseline"]) == (100, 50)
    assert probe["images"] == {"train": 86, "validation": 10, "test": 24}
    assert probe["seed"] == 0 and "Multinomial" in probe["protocol"] and probe["versions"]
    card = (model / "README.md").read_text()
    assert "| plain, top-1 | 100 % | 50 |" in card and "As told." in card and "kNN: plain" in card


def test_the_commonest_class_is_measured_as_the_predictions_are():
    """Right of 3 in 5 images, and of one of three classes."""
    labels = np.array([4, 4, 1, 9, 4])
    assert majority_class(labels, "top-1") == pytest.approx(60)
    assert majority_class(labels, "mean per class") == pytest.approx(100 / 3)


EXTRACT = "serving.extraction.pipeline.extract_with"


def test_a_second_run_computes_no_feature(tables, drawn, cache, monkeypatch):
    images = open_dataset(f"folder:{drawn / 'shape'}", None)
    before = tables.of(images)
    monkeypatch.setattr(EXTRACT, lambda *_: pytest.fail("extracted again"))
    again = Tables(tables.model, cache, "cpu")
    np.testing.assert_array_equal(again.of(images).features, before.features)
    assert [before.label_names[n] for n in before.labels] == list(images.classes)
    assert before.splits == list(images.splits)


def test_a_table_of_another_model_is_refused(tables, drawn, tmp_path, monkeypatch):
    """Somebody copied a cache entry into another model's place."""
    images = open_dataset(f"folder:{drawn / 'shape'}", None)

    def other(model: str, device: str, source: object, place: Path) -> None:
        shutil.copytree(next(tables.cache.glob("shape-*")), place)

    tables.of(images)
    model = Model(**{**vars(tables.model), "sha256": "f" * 64})
    monkeypatch.setattr(EXTRACT, other)
    with pytest.raises(AugSelfError, match=r"is of model \w{12} and not of tiny \(ffff"):
        Tables(model, tmp_path / "other", "cpu").of(images)


def test_an_unreadable_image_is_refused_by_name(tables, paint, tmp_path):
    for c in "ab":
        for i in range(6):
            paint(tmp_path / "set" / c / f"{i}.png", i)
    (tmp_path / "set/b/3.png").write_bytes(b"no image")
    images = open_dataset(f"folder:{tmp_path / 'set'}", None)
    with pytest.raises(AugSelfError, match=r"1 of 12 images of set cannot be read.*b/3\.png"):
        tables.of(images)


def test_a_class_with_too_few_images_is_refused_by_name(tables, drawn):
    plan = Plan(["fewshot"], [f"folder:{drawn / 'color'}"], None, TaskSettings(shots=(30,)))
    with pytest.raises(AugSelfError, match="has 40 images, 30 shots and 16"):
        evaluate(tables, plan, plan.open())


def test_what_can_be_measured_is_kept_where_one_set_cannot(
    tiny_model, plain, cache, paint, tmp_path
):
    for i in range(30):
        paint(tmp_path / "one" / "class" / f"{i}.png", i)
    asked = ("--model", tiny_model, "--tasks", "knn,linear", "--output", tmp_path / "out")
    words = ["evaluate", *asked, "--datasets", f"{tmp_path / 'one'},{plain}", "--cache", cache]
    done = CliRunner().invoke(augself, [*map(str, words), "--device", "cpu"])
    assert done.exit_code == 1
    assert "linear on one: " in str(done.exception) + done.output
    results = json.loads((tmp_path / "out" / EVALUATION).read_text())["results"]
    assert {"plain"} <= {
        result["dataset"] for result in results if result["task"] == "linear probe"
    }


def test_what_both_sides_have_is_compared_where_one_set_cannot(
    tiny_model, plain, cache, paint, tmp_path
):
    for i in range(30):
        paint(tmp_path / "one" / "class" / f"{i}.png", i)
    out, sets = tmp_path / "out", f"{tmp_path / 'one'},{plain}"
    asked = ("--compare", tiny_model, tiny_model, "--tasks", "linear", "--output", out)
    words = ["evaluate", *asked, "--datasets", sets, "--cache", cache, "--device", "cpu"]
    done = CliRunner().invoke(augself, list(map(str, words)))
    assert done.exit_code == 1 and isinstance(done.exception, AugSelfError)
    assert str(done.exception).count("tiny: linear on one: ") == 2
    (difference,) = json.loads((out / "comparison.json").read_text())["differences"]
    assert (difference["dataset"], difference["difference"]) == ("plain", 0)
    assert (out / "comparison.png").is_file()


def test_one_fault_of_any_kind_costs_one_result(tables, plain, drawn, tmp_path, monkeypatch):
    """A bug in a task; a picture that is in a set's list and no longer there."""

    def fails(subject, settings):
        raise ValueError("of a library")

    monkeypatch.setitem(TASKS, "linear", fails)
    paths = [*sorted(plain.rglob("*.png")), tmp_path / "gone.png"]
    listed = of_files("listed", Path("/"), [(path, path.parent.name, "train") for path in paths])
    plan = Plan(["linear", "knn"], [f"folder:{plain}"], None, TaskSettings())
    with pytest.raises(Unmeasured) as refused:
        evaluate(tables, plan, {"./listed": listed, **plan.open()})
    assert [(r.task, r.dataset) for r in refused.value.results] == [("kNN", "plain")]
    assert "linear on plain: ValueError: of a library" in str(refused.value)
    assert "gone.png: No such file or directory: mend or remove it" in str(refused.value)


def test_two_sets_of_one_name_are_not_measured_together(plain, paint, tmp_path):
    """One would replace the other in evaluation.json."""
    for place in ("a", "b"):
        paint(tmp_path / place / "photos" / "class" / "0.png", 0)
    sets = [str(tmp_path / "a/photos"), f"folder:{tmp_path / 'b/photos'}"]
    with pytest.raises(UsageError, match=r"a/photos and folder:.*b/photos are both called photos"):
        Plan(["knn"], sets, None, TaskSettings())
    paint(tmp_path / "pets" / "class" / "0.png", 0)
    for others in ([sets[0], sets[0]], [sets[0], str(plain)], ["pets", str(tmp_path / "pets")]):
        Plan(["knn"], others, None, TaskSettings())


def test_a_folder_named_like_the_papers_sets_is_not_taken_for_one(tables, plain, tmp_path):
    """Its results stand beside none of the paper's figures, and replace none of that set's."""
    place = shutil.copytree(plain, tmp_path / "pets")
    assert short_name("pets") == "pets"
    plan = Plan(["linear"], [str(place)], None, TaskSettings())
    (found,) = evaluate(tables, plan, plan.open())
    assert (found.dataset, found.name) == ("folder:pets", "folder:pets, top-1")
    (difference,) = compare([[found]], [[found]])
    assert difference.published == {}


def test_one_class_only_is_refused_by_name(tables, paint, tmp_path):
    for i in range(12):
        paint(tmp_path / "set/only" / f"{i}.png", i)
    plan = Plan(["linear"], [f"folder:{tmp_path / 'set'}"], None, TaskSettings())
    with pytest.raises(AugSelfError, match="every image is of class 'only'"):
        evaluate(tables, plan, plan.open())


def test_features_that_are_no_numbers_are_refused(tables, drawn):
    one = subject(tables, drawn / "shape")
    broken = one.table.features.copy()
    broken[5] = np.nan
    table = FeatureTable(**{**vars(one.table), "features": broken})
    with pytest.raises(AugSelfError, match="NaN or infinity, the first is row 5"):
        Subject(one.name, one.images, table, "top-1").examples("train", "val", "test")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "lineer", "--datasets", "folder:x"), "unknown task 'lineer': use linear"),
        (("--tasks", "linear", "--datasets", "mnist"), "unknown data set 'mnist'"),
        (("--tasks", "linear", "--datasets", "pets"), "pets needs --data"),
        (("--tasks", "localization", "--datasets", "{bare}"), "no data set can answer localiz"),
        (("--tasks", "linear", "--datasets", "{bare}"), "give --output DIR for the results"),
        (("--tasks", "knn", "--datasets", "{bare}", "--ways", "3"), "--ways would have no eff"),
        (("--tasks", "knn", "--datasets", "{bare}", "--shots", "2"), "fewshot is not among"),
        (("--tasks", "knn", "--datasets", "{bare}", "--queries", "2"), "--queries would have"),
        (("--tasks", "knn", "--datasets", "{bare}", "--epochs", "2"), "finetune is not among"),
        (("--tasks", "knn", "--datasets", "{bare}", "--data", "x"), "--data would have no effect"),
        (("--tasks", "knn", "--datasets", "{bare}", "--download"), "--download would have no"),
        (
            ("--tasks", "knn", "--datasets", "pets", "--data", "x", "--column", "label=a"),
            "--column would have no effect: the layout of these data sets is known",
        ),
        (
            ("--tasks", "knn", "--datasets", "pets", "--data", "x", "--read-as", "classes"),
            "--read-as would have no effect",
        ),
        (
            ("--tasks", "linear", "--datasets", "{bare}", "--compare", "a", "b", "--model", "c"),
            "--compare takes no --model",
        ),
    ],
)
def test_wrong_usage_is_named(words, message, tables, cache, paint, tmp_path):
    for c in "ab":
        for i in range(6):
            paint(tmp_path / "bare" / c / f"{i}.png", i)
    words = [word.format(bare=f"folder:{tmp_path / 'bare'}") for word in words]
    if "linear" not in message and "--output" not in message and "--compare" not in message:
        words += ["--output", str(tmp_path / "out")]
    with pytest.raises(UsageError, match=message):
        run(*words, cache=cache)


def test_a_model_without_graphs_names_the_export(tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    shutil.rmtree(model / "onnx")
    write_manifest(model)
    with pytest.raises(AugSelfError, match="augself export --model"):
        Model.resolve(str(model))


def test_two_models_are_compared_on_the_same_images(tiny_model, drawn, cache, tmp_path):
    output = tmp_path / "out"
    words = ("--compare", "augself_hub/pretrained", tiny_model, "--tasks", "linear,knn")
    words = ("--compare", tiny_model, tiny_model, *words[3:])
    run(*words, "--datasets", f"folder:{drawn / 'color'}", "--output", output, cache=cache)
    comparison = json.loads((output / "comparison.json").read_text())
    assert [d["difference"] for d in comparison["differences"]] == [0, 0]
    assert comparison["differences"][0]["over_images"] == [0, 0]
    assert (output / "comparison.md").read_text().count("| color, top-1 |") == 2
    assert {p.name for p in output.iterdir()} >= {"comparison.png", "comparison.svg"}


def test_views_are_what_their_parameters_say(drawn):
    """A quarter turn, a mirror and a gray view, seen in the pixels themselves."""
    images = open_dataset(f"folder:{drawn / 'shape'}", None)
    plain = np.asarray(images.image(0))
    for kind, strength, expected in (
        ("rot", 1, np.rot90(plain)),
        ("flip", 1, plain[:, ::-1]),
        ("brightness", 0.4, plain * 0.6),
    ):
        view = changed(images, [0], kind, strength, 96).image(0)
        np.testing.assert_allclose(np.asarray(view), expected, atol=1)
    gray = np.asarray(changed(images, [0], "gray", 1, 96).image(0))
    assert (gray == gray[..., :1]).all()


def test_pairs_do_not_depend_on_how_they_are_read(drawn):
    images = open_dataset(f"folder:{drawn / 'shape'}", None)
    two = pairs(images, [3, 5], Policy(size=32), 0)
    backwards = {i: two.images.read(i) for i in (3, 0, 2, 1)}
    again = pairs(images, [3, 5], Policy(size=32), 0)
    assert [backwards[i] for i in range(4)] == [again.images.read(i) for i in range(4)]
    assert (
        two.images.fingerprint() != pairs(images, [3, 5], Policy(size=32), 1).images.fingerprint()
    )
    assert len(set(backwards.values())) == 4


def test_pairs_say_which_crops_are_gray(drawn):
    """Of a picture that is gray on the left: where the box ends there, by the pixels of views of
    a policy that changes nothing else.
    """
    images = open_dataset(f"folder:{drawn / 'shape'}", None)
    half = np.zeros((96, 96, 3), np.uint8)
    half[:, 48:] = (200, 20, 30)
    images = dataclasses.replace(images, read=lambda index: png(half))
    policy = Policy(size=32, scale=(0.02, 0.1), flip=0, color=0, gray=0, blur=0)
    rows = np.arange(30)
    two = pairs(images, rows, policy, 0, colors=True)
    for view, w in enumerate((two.a, two.b)):
        seen = [two.images.image(2 * row + view) for row in rows]
        expected = [np.asarray(s)[..., 0].max() == 0 for s in seen]
        assert w["colorless"].tolist() == expected and 3 < sum(expected) < 27
    assert "colorless" not in pairs(images, rows, policy, 0).a


@pytest.fixture
def known_features(tiny_model, cache, monkeypatch) -> Tables:
    """Tables whose features are the logarithms of the pixels' mean and spread: we know of what."""

    def statistics(images):
        pixels = np.stack(images).reshape(len(images), -1, 3).astype(np.float32) + 1
        features = np.zeros((len(images), engine.spec.features), np.float32)
        features[:, :6] = np.log(np.hstack([pixels.mean(axis=1), pixels.std(axis=1) + 1]))
        return features

    engine = load(str(tiny_model), "cpu", 1)
    engine.features = statistics
    model = Model.resolve(str(tiny_model))
    monkeypatch.setattr(EXTRACT, lambda _, __, images, place: extract(images, place, engine))
    return Tables(model, cache / "known", "cpu")


def test_awareness_and_invariance_say_what_features_know(known_features, drawn, monkeypatch):
    """Mean and spread of the pixels know brightness exactly and cannot know a mirror or a turn."""
    monkeypatch.setattr("training.evaluation.awareness.FITTED", 120)
    monkeypatch.setattr("training.evaluation.awareness.COMPARED", 20)
    results = awareness(subject(known_features, drawn / "shape"), known_features, TaskSettings())
    found = {(r.task, r.details.get("dimension", r.name)): r for r in results}
    assert found["awareness, two views", "color brightness"].value > 0.8
    assert abs(found["awareness, two views", "flip mirrored"].value - 50) < 25
    assert {r.details["dimension"] for r in results if r.task == "AugSelf heads"} >= {"crop y"}
    assert ("awareness, one view", "rot quarter_turns") in found
    assert all(r.baseline is not None for r in results)
    kept = {
        (r.details["kind"], r.details["strength"]): r for r in results if "strength" in r.details
    }
    assert len(kept) == sum(map(len, CHANGES.values()))
    for blind in (("flip", 1), ("rot", 1), ("rot", 3)):
        assert kept[blind].details["invariance"] == pytest.approx(1, abs=1e-3)
    falling = [kept["brightness", strength].value for strength in CHANGES["brightness"]]
    assert falling == sorted(falling, reverse=True) and falling[-1] < 0.9999


def test_of_gray_pictures_no_saturation_and_no_hue_are_asked(
    known_features, drawn, monkeypatch, tmp_path, caplog
):
    for path in (drawn / "shape").rglob("*.png"):
        new = tmp_path / "gray" / path.relative_to(drawn / "shape")
        new.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").convert("RGB").save(new)
    monkeypatch.setattr("training.evaluation.awareness.FITTED", 60)
    monkeypatch.setattr("training.evaluation.awareness.COMPARED", 5)
    monkeypatch.setattr("training.evaluation.awareness.CHANGES", {"flip": (1,)})
    caplog.set_level("INFO")
    results = awareness(subject(known_features, tmp_path / "gray"), known_features, TaskSettings())
    asked = {(r.task, r.details.get("dimension")) for r in results}
    for task in ("awareness, two views", "awareness, one view", "AugSelf heads"):
        assert (task, "color brightness") in asked
        assert not {(task, "color saturation"), (task, "color hue")} & asked
        assert task == "AugSelf heads" or f"{task}: color hue cannot be seen" in caplog.text


def test_finetuning_learns_what_is_easy(tables, plain, monkeypatch):
    monkeypatch.setattr("training.evaluation.finetune.BATCH", 16)
    (found,) = finetune(subject(tables, plain), tables.model, TaskSettings(epochs=6))
    assert found.value > 90
    assert found.value == pytest.approx(found.scores.mean())


@pytest.mark.parametrize(("device", "on_cpu"), [("cpu", True), ("openvino", True), ("auto", False)])
def test_finetuning_keeps_to_the_device_that_was_asked_for(
    tables, plain, monkeypatch, device, on_cpu
):
    """As where there is a GPU; what is asked of the trainer is looked at, and it ends there."""
    given = {}

    def arguments(**options):
        given.update(options)
        raise InterruptedError

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("training.evaluation.finetune.TrainingArguments", arguments)
    with pytest.raises(InterruptedError):
        finetune(subject(tables, plain), tables.model, TaskSettings(epochs=1), device)
    assert given["use_cpu"] is on_cpu and given["dataloader_pin_memory"] is not on_cpu


@pytest.mark.parametrize(("images", "trained_on"), [(33, 32), (18, 18)])
def test_a_batch_is_never_a_single_image_and_is_of_one_gpu(
    tables, paint, tmp_path, monkeypatch, images, trained_on
):
    """A 32-pixel ResNet's last maps have one place: BN has no variance over a single image."""
    sizes, arguments = [], []

    class Two(TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 2

    class Watched(Trainer):
        def training_step(self, model, inputs, *others):
            arguments.append(self.args)
            sizes.append(len(inputs["labels"]))
            return super().training_step(model, inputs, *others)

    for split, count in (("train", images), ("test", 4)):
        for i in range(count):
            paint(tmp_path / f"set/{split}/{'ab'[i % 2]}/{i}.png", 9 * (i % 2) + i)
    monkeypatch.setattr("training.evaluation.finetune.BATCH", 16)
    monkeypatch.setattr("training.evaluation.finetune.TrainingArguments", Two)
    monkeypatch.setattr("training.evaluation.finetune.Trainer", Watched)
    finetune(subject(tables, tmp_path / "set"), tables.model, TaskSettings(epochs=1))
    assert sum(sizes) == trained_on and max(sizes) == 16
    assert arguments[0].n_gpu == 1


def test_what_was_measured_is_kept_where_another_set_cannot_be_read(
    tiny_model, plain, cache, paint, tmp_path
):
    """Hours of it were lost for one damaged image of the last set."""
    for c in "ab":
        for i in range(6):
            paint(tmp_path / "broken" / c / f"{i}.png", i)
    (tmp_path / "broken/b/3.png").write_bytes(b"no image")
    out, sets = tmp_path / "out", f"{plain},{tmp_path / 'broken'}"
    asked = ("--model", tiny_model, "--tasks", "linear", "--output", out, "--datasets", sets)
    words = ["evaluate", *map(str, asked), "--cache", str(cache), "--device", "cpu"]
    done = CliRunner().invoke(augself, words)
    assert done.exit_code == 1 and "1 of 12 images of broken" in str(done.exception)
    results = json.loads((out / EVALUATION).read_text())["results"]
    assert [result["dataset"] for result in results] == ["plain"]


def test_nothing_measured_leaves_nothing(tiny_model, cache, paint, tmp_path):
    for c in "ab":
        for i in range(6):
            paint(tmp_path / "few" / c / f"{i}.png", i)
    out = tmp_path / "out"
    asked = ("--model", tiny_model, "--tasks", "knn", "--output", out, "--datasets")
    words = ["evaluate", *map(str, asked), f"{tmp_path / 'few'}", "--cache", str(cache)]
    done = CliRunner().invoke(augself, [*words, "--device", "cpu"])
    assert done.exit_code == 1 and "leave knn out of the tasks" in str(done.exception)
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", -1), ("seed", 2**32), ("shots", 0), ("seed", 1.5), ("queries", 0), ("ways", 1)],
)
def test_settings_of_tasks_that_cannot_be(option, value, tmp_path):
    """Before anything is read; numpy's own error came out after the extraction."""
    from augself_hub import evaluate as measure

    given = {option: (value,) if option == "shots" else value}
    with pytest.raises(UsageError, match=f"--{option} {value}: give a whole number from"):
        measure(tasks=["fewshot"], datasets=["nowhere"], output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
