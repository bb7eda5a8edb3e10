"""Models by name: published, fetched and listed by the real client over HTTP."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi

from augself_hub import AugSelfModel, Encoder, export, hub
from augself_hub.errors import AugSelfError, HubError, ModelFolderError, UsageError
from augself_hub.folder import MANIFEST, read_manifest, verify, write_manifest
from augself_hub.modeling.encoders import build_encoder

NAME = "somebody/tiny"
MINE = "hf_may_write"
COMMIT = rf"POST /api/models/{NAME}/commit/main"


@pytest.fixture
def waits(monkeypatch):
    """Seconds waited for a busy Hub; no second passes."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


# -- No model --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    ["nothing-here", "../x", "a/../b", "a/b/c", "-a/b", "a/b--c", "a b/c"],
)
def test_no_model_is_one_line(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFolderError) as caught:
        hub.resolve(model)
    assert "\n" not in str(caught.value)


def test_a_revision_that_would_be_ignored_is_refused(tiny_model):
    with pytest.raises(UsageError, match="is a folder and has no revision 'v1'"):
        hub.resolve(tiny_model, "v1")
    with pytest.raises(UsageError, match="names a revision"):
        hub.resolve(f"{NAME}@v1", "v2")


@pytest.mark.parametrize(
    "words",
    [
        ("export", "--model", NAME),
        ("fit-matcher", NAME, "--data", "photos"),
        ("fit-uncertainty", NAME, "--data", "photos"),
        ("push", NAME, "somebody/other"),
        ("push", NAME, "somebody/other", "--dry-run"),
    ],
)
def test_what_changes_or_publishes_a_model_says_how_to_have_one_of_ones_own(words, augself):
    done = augself(*words)
    assert done.status == 1 and done.err.count("\n") == 1, done.err
    assert f"{NAME} is no folder: of a model of the Hub, augself pull {NAME} FOLDER" in done.err
    assert f"then {words[0]} that" in done.err


def test_a_model_is_called_in_torch_as_it_is_by_the_encoder(local_hub, tiny_model, photographs):
    """Not what its files lie in: of a Hub id a commit, of the embedded model a part of ours."""
    hub.push(tiny_model, NAME)
    names = {None: "embedded", str(tiny_model): "tiny", NAME: NAME, f"{NAME}@main": f"{NAME}@main"}
    for given, name in names.items():
        assert AugSelfModel.from_pretrained(given).name == Encoder(given).name == name
    model = AugSelfModel.from_pretrained(NAME, revision="main")
    assert model.difference(*photographs[:2]).model == f"{NAME}@main"
    inside = AugSelfModel.from_pretrained(tiny_model.parent, subfolder="tiny")
    assert inside.name == "tiny"


# -- Push and pull ---------------------------------------------------------------------------------


def test_what_is_pushed_is_what_is_pulled(local_hub, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(HfApi, "upload_folder", None)  # may make several commits
    url = hub.push(model_folder, NAME, commit_message="First")
    (_, (commit, _)) = local_hub.repositories[NAME].commits
    assert url == f"{local_hub.url}/{NAME}/commit/{commit}"
    assert len(local_hub.asked(r"/commit/")) == 1
    pulled = hub.pull(NAME, tmp_path / "pulled")
    assert verify(pulled) == pulled
    old, new = read_manifest(model_folder), read_manifest(pulled)
    assert old.pop("card") != new.pop("card")
    assert new == old  # every file that computes
    assert NAME in (pulled / "README.md").read_text()
    for name in ("evaluation.json", "training_log.json"):
        assert (pulled / name).read_bytes() == (model_folder / name).read_bytes()
    x = torch.randn(2, 3, 32, 32)
    for name, values in AugSelfModel.from_pretrained(NAME)(x).items():
        torch.testing.assert_close(
            values, AugSelfModel.from_pretrained(model_folder)(x)[name], rtol=0, atol=0
        )


def test_pull_leaves_nothing_where_something_is_or_goes_wrong(published, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(AugSelfError, match="there exists"):
        hub.pull(NAME, tmp_path / "there")
    before = sorted(tmp_path.iterdir())
    copy = shutil.copyfile

    def cut_short(source, to):
        copy(source, to)
        os.truncate(to, to.stat().st_size - (to.name == "model.safetensors"))

    monkeypatch.setattr("shutil.copyfile", cut_short)
    with pytest.raises(ModelFolderError, match="is not the file its manifest names"):
        hub.pull(NAME, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_disagrees_with_its_manifest_is_not_pushed(local_hub, model_folder):
    (model_folder / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match=r"config\.json is not the file"):
        hub.push(model_folder, NAME)
    assert local_hub.requests == []


def test_a_second_push_replaces_the_first_and_both_can_be_had(published, model_folder):
    first = hub.resolve(NAME)
    for name in ("evaluation.json", "onnx/heads.onnx"):
        (model_folder / name).unlink()
    write_manifest(model_folder)
    hub.push(model_folder, NAME)
    assert len(published.asked(COMMIT)) == 2
    assert {"evaluation.json", "onnx/heads.onnx"}.isdisjoint(published.files(NAME))
    assert ".gitattributes" in published.files(NAME)
    assert "onnx/heads.onnx" not in read_manifest(hub.resolve(NAME))["files"]
    commit = published.repositories[NAME].commits[1][0]
    published.repositories[NAME].tags["v1"] = commit
    assert hub.resolve(f"{NAME}@v1") == hub.resolve(NAME, "v1") == hub.resolve(NAME, commit)
    assert hub.resolve(f"{NAME}@{commit}").name == first.name == commit
    with pytest.raises(HubError, match=r"somebody/tiny@v9: the Hub has no such .*\(404\)"):
        hub.resolve(f"{NAME}@v9")


OWNERS = {
    "README.md": b"---\nlicense: mit\n---\nMine.\n",
    "LICENSE": b"Mine.",
    "pictures/cat.png": b"picture",
    "notes.txt": b"notes",
}


def test_what_its_owner_edits_or_adds_on_the_hub_is_theirs(published, model_folder, caplog):
    """It is neither refused by those who load the model, nor deleted or undone by the next push."""
    files = published.files(NAME)
    published.repositories[NAME].commit({**files, **OWNERS})
    AugSelfModel.from_pretrained(NAME)
    pulled = hub.pull(NAME, model_folder.parent / "pulled")
    assert (pulled / "LICENSE").read_bytes() == b"Mine."
    assert (pulled / "README.md").read_bytes() == OWNERS["README.md"]
    (model_folder / "onnx/heads.onnx").unlink()
    (model_folder / "LICENSE").write_text("another")
    write_manifest(model_folder)
    planned = hub.plan(model_folder, NAME)
    assert planned.deletes == ["onnx/heads.onnx"]
    assert planned.keeps == sorted(OWNERS)
    with caplog.at_level(logging.INFO):
        hub.push(model_folder, NAME)
    for name, content in OWNERS.items():
        assert published.files(NAME)[name] == content
        assert f"keeping {name} as it is on the Hub" in caplog.text
    assert "deleting onnx/heads.onnx" in caplog.text
    assert "onnx/heads.onnx" not in published.files(NAME)
    AugSelfModel.from_pretrained(NAME)


def test_a_card_that_nobody_edited_is_generated_again(published, model_folder):
    first = published.files(NAME)["README.md"]
    result = {"task": "kNN", "name": "CIFAR-10", "metric": "accuracy", "value": 0.25}
    evaluation = {"protocol": "k = 20", "results": [result]}
    (model_folder / "evaluation.json").write_text(json.dumps(evaluation))
    hub.push(model_folder, NAME)
    assert b"CIFAR-10" in published.files(NAME)["README.md"] and b"CIFAR-10" not in first


def test_a_card_edited_in_the_folder_is_published_as_it_is(local_hub, model_folder):
    (model_folder / "README.md").write_bytes(OWNERS["README.md"])
    hub.push(model_folder, NAME)
    assert local_hub.files(NAME)["README.md"] == OWNERS["README.md"]
    again = OWNERS["README.md"] + b"More.\n"
    (model_folder / "README.md").write_bytes(again)
    hub.push(model_folder, NAME)
    assert local_hub.files(NAME)["README.md"] == again


def test_a_repository_of_0_1_whose_manifest_names_the_card(published, model_folder):
    """Its card is known by the manifest's files: unedited it is replaced, edited it stays."""
    files = dict(published.files(NAME))
    manifest = json.loads(files[MANIFEST.as_posix()])
    published_card = manifest.pop("card")["published"]
    manifest["files"]["README.md"] = published_card
    files[MANIFEST.as_posix()] = json.dumps(manifest).encode()
    published.repositories[NAME].commit(files)
    assert "README.md" in hub.plan(model_folder, NAME).uploads
    published.repositories[NAME].commit({**files, "README.md": OWNERS["README.md"]})
    assert hub.plan(model_folder, NAME).keeps == ["README.md"]
    AugSelfModel.from_pretrained(NAME)


@pytest.mark.parametrize("name", ["code.py", "adapter_config.json", "pytorch_model.bin"])
def test_what_would_be_run_or_read_as_the_model_is_refused_and_deleted(
    published, model_folder, name
):
    published.repositories[NAME].commit({**published.files(NAME), name: b"{}"})
    with pytest.raises(ModelFolderError, match=name):
        hub.resolve(NAME)
    assert hub.plan(model_folder, NAME).deletes == [name]
    hub.push(model_folder, NAME)
    assert name not in published.files(NAME)


def test_a_plan_makes_no_repository(local_hub, model_folder):
    planned = hub.plan(model_folder, NAME)
    assert (planned.deletes, planned.keeps) == ([], [])
    assert {"README.md", "model.safetensors", MANIFEST.as_posix()} < set(planned.uploads)
    assert local_hub.repositories == {}


def test_the_same_model_again_is_no_commit(published, model_folder):
    (_, (commit, _)) = published.repositories[NAME].commits
    assert hub.push(model_folder, NAME) == f"{published.url}/{NAME}/commit/{commit}"
    assert len(published.repositories[NAME].commits) == 2


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_s_visibility_is_not_changed_behind_anyone_s_back(
    local_hub, model_folder, private
):
    hub.push(model_folder, NAME, private=private)
    assert local_hub.repositories[NAME].private == private
    with pytest.raises(HubError, match="exists and is " + ("private" if private else "public")):
        hub.push(model_folder, NAME, private=not private)
    assert len(local_hub.asked(COMMIT)) == 1


def test_something_else_on_the_hub_is_neither_replaced_nor_downloaded(local_hub, model_folder):
    HfApi().create_repo(NAME)
    local_hub.repositories[NAME].commit({"weights.safetensors": b"large"})
    with pytest.raises(HubError, match=r"holds something else \(weights\.safetensors\)"):
        hub.push(model_folder, NAME)
    with pytest.raises(HubError, match=r"is no AugSelf model: the Hub has no augself/manifest"):
        hub.resolve(NAME)
    assert not local_hub.asked("/commit/|/resolve/.*weights")


@pytest.mark.parametrize("change", ["flipped", "pickle", "foreign"])
def test_a_model_spoilt_on_the_hub_is_refused_by_name(published, change):
    files = dict(published.files(NAME))
    data = bytearray(files["model.safetensors"])
    data[-1] ^= 1
    name, content = {
        "flipped": ("model.safetensors", bytes(data)),
        "pickle": ("pytorch_model.bin", b"x"),
        "foreign": ("adapter_config.json", b"{}"),
    }[change]
    published.repositories[NAME].commit(files | {name: content})
    with pytest.raises(ModelFolderError, match=f"{name} (is not|may be a pickle)"):
        hub.resolve(NAME)


def test_somebody_else_s_commit_in_between_is_not_undone(local_hub, model_folder, monkeypatch):
    hub.push(model_folder, NAME)
    info = HfApi.model_info

    def and_then_somebody_commits(*arguments, **options):
        there = info(*arguments, **options)
        local_hub.repositories[NAME].commit(local_hub.files(NAME) | {"LICENSE": b"theirs"})
        return there

    monkeypatch.setattr(HfApi, "model_info", and_then_somebody_commits)
    (model_folder / "training_log.json").write_text("[1]")
    write_manifest(model_folder)
    with pytest.raises(HubError, match="changed it at the same time"):
        hub.push(model_folder, NAME)
    assert local_hub.files(NAME)["LICENSE"] == b"theirs"


# -- A model in memory -----------------------------------------------------------------------------


def test_an_unchanged_model_is_pushed_with_its_graphs_and_results(local_hub, model_folder):
    AugSelfModel.from_pretrained(model_folder).push_to_hub(NAME)
    assert {"onnx/features.onnx", "evaluation.json"} < set(local_hub.files(NAME))


@pytest.mark.parametrize("part", ["encoder", "heads", "spec"])
def test_a_changed_model_is_pushed_without_what_describes_the_old(
    published, model_folder, part, caplog
):
    model = AugSelfModel.from_pretrained(model_folder)
    if part == "spec":
        model.spec = dataclasses.replace(model.spec, provenance={"license": "mit"})
    else:
        with torch.no_grad():
            next(getattr(model, part).parameters()).add_(1)
    with caplog.at_level(logging.WARNING):
        model.push_to_hub(NAME, commit_message="Changed")
    assert "published without onnx/ and without what was measured" in caplog.text
    there = set(published.files(NAME))
    assert not {path for path in there if path.startswith("onnx/")} | ({"evaluation.json"} & there)
    assert "training_log.json" in there
    again = AugSelfModel.from_pretrained(NAME)
    assert again.spec == (model.spec if part == "spec" else model.spec.unmeasured())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_a_model_from_nowhere_is_pushed_private_with_a_token(local_hub, tiny_model, monkeypatch):
    model = AugSelfModel.from_pretrained(tiny_model)
    model.folder = None
    monkeypatch.delenv("HF_TOKEN")
    model.push_to_hub(NAME, private=True, token=MINE)
    assert local_hub.repositories[NAME].private
    with pytest.raises(HubError, match=r"does not know you \(401\): .*hf auth login"):
        AugSelfModel.from_pretrained(NAME)
    assert AugSelfModel.from_pretrained(NAME, token=MINE).spec == model.spec


# -- When the Hub says no --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "expected"),
    [("", r"\(401\): check the name, or log in"), ("hf_may_read", r"\(403\): use one with write")],
)
def test_whoever_may_not_push_is_told_why(local_hub, model_folder, token, expected):
    with pytest.raises(HubError, match=f"{NAME}: .*{expected}") as caught:
        hub.push(model_folder, NAME, token=token or False)
    assert "\n" not in str(caught.value)
    assert not local_hub.asked("/commit/")


@pytest.mark.parametrize(("token", "status"), [(MINE, 404), (False, 401)])
def test_a_model_the_hub_does_not_have(local_hub, token, status):
    with pytest.raises(HubError, match=rf"^nobody/nothing: .*\({status}\): check the name"):
        hub.resolve("nobody/nothing", token=token)


@pytest.mark.parametrize(
    "request_", ["repos/create", "GET /api/models/", "preupload", "PUT /lfs", "/commit/"]
)
def test_a_push_to_a_busy_hub_is_tried_again(local_hub, model_folder, request_, waits):
    local_hub.trouble.append([request_, 503, 2])
    hub.push(model_folder, NAME)
    assert len(local_hub.repositories[NAME].commits) == 2
    assert len(waits) >= 2


@pytest.mark.parametrize("request_", ["GET /api/models/", "HEAD", "GET /.*/resolve/", "/cdn/"])
def test_a_model_of_a_busy_hub_is_asked_for_again(published, request_, waits):
    published.trouble.append([request_, 503, 2])
    assert hub.resolve(NAME).is_dir()
    assert waits


def test_a_hub_that_stays_busy_is_given_up_in_one_line(local_hub, model_folder, waits):
    local_hub.trouble.append(["GET /api/models/|/create", 503, 10**6])
    for call in (lambda: hub.push(model_folder, NAME), lambda: hub.resolve(NAME)):
        with pytest.raises(HubError, match=r"somebody/tiny: the Hub is busy \(503\): try again"):
            call()
    assert waits == [1, 2, 4] * 2


def test_a_hub_that_cannot_be_reached(local_hub, model_folder, waits):
    local_hub.shutdown()
    local_hub.server_close()
    for call in (lambda: hub.push(model_folder, NAME), lambda: hub.resolve(NAME)):
        with pytest.raises(HubError, match=r"cannot be reached: check the connection"):
            call()


# -- Without the Hub -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["HF_HUB_OFFLINE", "local_files_only", "down"])
def test_what_is_in_the_cache_is_had_without_the_hub(published, way, tmp_path, monkeypatch, waits):
    options = {"cache_dir": tmp_path / "elsewhere"}
    expected = hub.resolve(NAME, **options)
    assert (tmp_path / "elsewhere") in expected.parents
    if way == "down":
        published.trouble.append([".", 503, 10**6])
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", way == "HF_HUB_OFFLINE")
        options["local_files_only"] = way == "local_files_only"
    asked = len(published.requests)
    assert hub.resolve(NAME, **options) == expected
    assert AugSelfModel.from_pretrained(NAME, **options).folder == expected
    assert way == "down" or len(published.requests) == asked
    with pytest.raises(HubError, match="is busy" if way == "down" else "not in the cache"):
        hub.resolve("nobody/nothing", **options)


def test_the_environment_variable_is_enough(published, tmp_path):
    hub.resolve(NAME)
    asked = len(published.requests)
    done = subprocess.run(
        [sys.executable, "-m", "augself_hub.cli", "verify", NAME],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("is what its manifest says\n")
    assert len(published.requests) == asked


# -- Without this project --------------------------------------------------------------------------

STOCK = """
import sys
sys.modules["augself_hub"] = None
import torch
from transformers import AutoImageProcessor, AutoModel

for cached in (False, True):
    AutoImageProcessor.from_pretrained(sys.argv[1], local_files_only=cached)
    model, info = AutoModel.from_pretrained(
        sys.argv[1], local_files_only=cached, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    with torch.no_grad():
        features = model.eval()(torch.full((1, 3, 32, 32), 0.5)).pooler_output.flatten(1)
    print(repr(features[0].tolist()))
"""


def test_stock_transformers_load_it_by_its_name_from_the_hub_and_its_cache(
    published, model_folder, tmp_path
):
    environment = {"HF_ENDPOINT": published.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", STOCK, NAME],
        env={**os.environ, **environment, "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        ours = AugSelfModel.from_pretrained(model_folder)(torch.full((1, 3, 32, 32), 0.5))
    for line in done.stdout.splitlines()[-2:]:
        torch.testing.assert_close(torch.tensor([json.loads(line)]), ours.features)


def test_the_manifest_is_asked_for_first(published):
    hub.resolve(NAME)
    assert published.asked("resolve")[0].endswith(MANIFEST.as_posix())


# -- Subfolders, and encoders that are no model of ours --------------------------------------------


def test_a_subfolder_of_a_repository(local_hub, model_folder):
    HfApi().create_repo(NAME)
    files = {p.relative_to(model_folder).as_posix(): p.read_bytes()
             for p in model_folder.rglob("*") if p.is_file()}  # fmt: skip
    local_hub.repositories[NAME].commit({f"very/deep/er/{n}": data for n, data in files.items()})
    local_hub.repositories[NAME].tags["v1"] = local_hub.repositories[NAME].commits[-1][0]
    model = AugSelfModel.from_pretrained(NAME, subfolder="very/deep/er", revision="v1")
    assert model.folder.parts[-3:] == ("very", "deep", "er")
    with pytest.raises(HubError, match=r"the Hub has no augself/manifest\.json in it"):
        AugSelfModel.from_pretrained(NAME)


def test_the_client_s_cache_is_not_exported_into(published, model_folder):
    """Its files are the Hub's, which `augself verify NAME` says."""
    there = hub.resolve(NAME)
    before = {p: p.read_bytes() for p in there.rglob("*") if p.is_file()}
    with pytest.raises(ModelFolderError, match=f"augself pull {NAME} FOLDER, then export"):
        export(NAME)
    assert {p: p.read_bytes() for p in there.rglob("*") if p.is_file()} == before


def test_an_encoder_of_the_hub_comes_without_what_it_does_not_need(local_hub, model_folder):
    HfApi().create_repo(NAME)
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    files = {name: (model_folder / name).read_bytes() for name in names}
    local_hub.repositories[NAME].commit({**files, "pytorch_model.bin": b"pickle", "code.py": b""})
    encoder = build_encoder(NAME, 32).network.eval()
    x = torch.randn(2, 3, 32, 32)
    expected = AugSelfModel.from_pretrained(model_folder)(x).features
    torch.testing.assert_close(encoder(pixel_values=x).pooler_output.flatten(1), expected)
    assert not local_hub.asked(r"pytorch_model\.bin|code\.py")


@pytest.mark.parametrize(
    "field", [{"auto_map": {"AutoModel": "code.Mine"}}, {"attn_implementation": "org/kernel"}]
)
def test_an_encoder_of_the_hub_that_would_run_code_is_refused_before_its_weights_come(
    local_hub, model_folder, field
):
    HfApi().create_repo(NAME)
    config = json.loads((model_folder / "config.json").read_text()) | field
    weights = (model_folder / "model.safetensors").read_bytes()
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    local_hub.repositories[NAME].commit(files)
    with pytest.raises(ModelFolderError, match=min(field)):
        build_encoder(NAME, 32)
    assert not local_hub.asked(r"(GET|HEAD) .*model\.safetensors$")


@pytest.mark.parametrize(
    "revision", ["../../x", "/tmp/x", "a/../../b", "a\\b", "a\0b", "a b", "x\n"]
)
def test_a_revision_leads_to_no_place_of_this_machine(published, revision, tmp_path):
    """The client keeps what it stands for in a file of that name."""
    before = list(published.requests)
    with pytest.raises(UsageError, match="is no branch, tag or commit"):
        hub.resolve("somebody/tiny", revision)
    with pytest.raises(AugSelfError):
        hub.resolve("somebody/tiny@/tmp/x")
    assert published.requests == before and not (tmp_path / "x").exists()
