"""The model folder as files: what the manifest refuses; a change is whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from augself_hub import __version__, hub
from augself_hub import folder as model_folder
from augself_hub.augmentations.spec import Policy, Spec, heads_for
from augself_hub.errors import AugSelfError, ModelFolderError

FILES = {
    "config.json": '{"v": VERSION}',
    "model.safetensors": "weightsVERSION",
    "augself/model.safetensors": "headsVERSION",
    "onnx/features.onnx": "graphVERSION",
}
POLICY = Policy()
SPEC = Spec("relative", POLICY, heads_for(["crop"], POLICY), features=8)


def fill(folder, version="1"):
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("VERSION", version))
    (folder / model_folder.CONFIG).write_text(SPEC.to_json())
    model_folder.write_manifest(folder)
    return folder


def version(folder):
    """Of a folder that agrees with its manifest."""
    return (model_folder.verify(folder) / "model.safetensors").read_text().removeprefix("weights")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "model")


# -- Manifest --------------------------------------------------------------------------------------


def test_the_embedded_model_stays_below_45_megabytes():
    """A second copy of its encoder, for transformers.js, would not: that is made by the command."""
    files = [p for p in hub.EMBEDDED.rglob("*") if p.is_file()]
    assert 20e6 < sum(p.stat().st_size for p in files) < 45e6
    assert model_folder.verify(hub.EMBEDDED) == hub.EMBEDDED


def test_a_folder_that_agrees_with_its_manifest_is_resolved(folder):
    assert hub.resolve(folder) == folder
    assert hub.resolve(str(folder)) == folder
    assert model_folder.read_spec(folder) == SPEC


def test_the_manifest_names_every_other_file(folder):
    manifest = json.loads((folder / "augself/manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted([*FILES, "augself/config.json"])
    assert manifest["files"]["config.json"] == (
        "9ab2253fc38981f5be9c25cf0a34b62cdf334652344bdef16b3d5dbc0b74f2f1"  # of '{"v": 1}'
    )
    assert "torch" in manifest["versions"]
    assert manifest["versions"]["augself-hub"] == __version__ != "0.1.0"


def test_measured_parity_is_kept_until_it_is_measured_again(folder):
    model_folder.write_manifest(folder, parity={"cosine": 0.9999})
    model_folder.write_manifest(folder)
    assert model_folder.read_manifest(folder)["parity"] == {"cosine": 0.9999}


@pytest.mark.parametrize("name", [*FILES, "augself/config.json"])
def test_a_changed_file_is_refused_by_name(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[0] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ModelFolderError, match=f"{name} is not the file its manifest names"):
        hub.resolve(folder)


@pytest.mark.parametrize("name", [*FILES, "augself/config.json"])
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=f"{name} is missing"):
        hub.resolve(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3}', '{"files": ["a"]}', "\xff"])
def test_a_damaged_manifest_is_refused(folder, text):
    (folder / model_folder.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(ModelFolderError, match=r"augself/manifest\.json cannot be read"):
        hub.resolve(folder)


@pytest.mark.parametrize("missing", [model_folder.MANIFEST, model_folder.CONFIG])
def test_a_folder_without_ours_is_no_model_folder(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ModelFolderError, match=f"{missing.name} is missing"):
        hub.resolve(folder)
    read = {
        model_folder.MANIFEST: model_folder.read_manifest,
        model_folder.CONFIG: model_folder.read_spec,
    }
    with pytest.raises(ModelFolderError, match="is missing"):
        read[missing](folder)


@pytest.mark.parametrize("outside", ["../secret", "{tmp}/secret", "onnx/../../secret"])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(folder, tmp_path, outside):
    (tmp_path / "secret").write_text('{"v": 1}')
    path = outside.format(tmp=tmp_path)
    manifest = model_folder.read_manifest(folder)
    manifest["files"][path] = manifest["files"]["config.json"]
    (folder / model_folder.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelFolderError, match="not in the folder"):
        model_folder.verify(folder)


def linked(folder, blobs):
    """Every file of the folder becomes a link into `blobs`, as in the Hub's cache."""
    blobs.mkdir(parents=True)
    for i, path in enumerate(path for path in list(folder.rglob("*")) if path.is_file()):
        path.rename(blobs / str(i))
        path.symlink_to(os.path.relpath(blobs / str(i), path.parent))
    return blobs


@pytest.mark.parametrize("blobs", ["models--a--b/blobs", "blobs"])
def test_a_snapshot_of_links_in_the_hubs_cache_is_read(tmp_path, blobs):
    folder = fill(tmp_path / "models--a--b/snapshots/c0ffee")
    blobs = linked(folder, tmp_path / blobs)  # the repository's own, or those repositories share
    assert version(hub.resolve(folder)) == "1"
    with model_folder.changed_folder(folder) as changed:
        fill(changed, "2")
    assert version(folder) == "2"
    assert {path.read_text() for path in blobs.iterdir()} >= {"weights1"}


@pytest.mark.parametrize("blobs", ["blobs", "models--a--c/blobs"])
def test_links_out_of_any_other_folder_are_refused(folder, tmp_path, blobs):
    linked(folder, tmp_path / blobs)
    with pytest.raises(ModelFolderError, match=r"augself/config\.json is a link out of the folder"):
        hub.resolve(folder)


def test_a_folder_behind_a_link_is_refused(folder, tmp_path):
    (folder / "onnx").rename(tmp_path / "onnx")
    (folder / "onnx").symlink_to(tmp_path / "onnx")
    with pytest.raises(ModelFolderError, match="onnx is a link out of the folder"):
        hub.resolve(folder)


FOREIGN = ("adapter_config.json", "adapter_model.safetensors", "onnx/old.onnx", "onnx/x", "code.py")
FOREIGN_TOO = ("processor_config.json", "1_Pooling/config.json", "modules.json", "augself/more.txt")


@pytest.mark.parametrize("name", [*FOREIGN, *FOREIGN_TOO])
def test_a_foreign_file_that_would_be_read_as_the_model_is_refused_by_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("foreign")
    with pytest.raises(ModelFolderError, match=f"{name} is not in augself/manifest.json"):
        hub.resolve(folder)


def test_what_computes_nothing_is_the_owners(folder):
    """Cards, licences, pictures, results: changed, added, missing; of a folder of 0.1, which names
    them in its manifest, too.
    """
    (folder / "README.md").write_text("ours")
    (folder / "curves.png").write_text("ours")
    manifest = model_folder.read_manifest(folder)
    assert "README.md" not in manifest["files"]
    manifest["files"] |= {"README.md": "0" * 64, "curves.png": "0" * 64, "evaluation.json": "0"}
    (folder / model_folder.MANIFEST).write_text(json.dumps(manifest))
    (folder / "README.md").write_text("theirs")
    (folder / "curves.png").unlink()
    for name in ("LICENSE", "notes.txt", "docs/photo.jpg", "table.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("theirs")
    assert hub.resolve(folder) == folder


@pytest.mark.parametrize("suffix", [*model_folder.PICKLES, ".PTH"])
@pytest.mark.parametrize("named", [True, False])
def test_a_pickle_is_refused_by_name_even_if_the_manifest_has_it(folder, suffix, named):
    (folder / f"pytorch_model{suffix}").write_text("x")
    if named:
        model_folder.write_manifest(folder)
    with pytest.raises(ModelFolderError, match=f"pytorch_model{suffix} may be a pickle"):
        hub.resolve(folder)


def test_what_other_tools_leave_under_a_name_with_a_dot_is_not_looked_at(folder):
    (folder / ".cache/huggingface").mkdir(parents=True)
    (folder / ".cache/huggingface/x.bin").write_text("x")
    (folder / ".gitattributes").write_text("x")
    assert hub.resolve(folder) == folder
    model_folder.write_manifest(folder)
    assert not any(name[0] == "." for name in model_folder.read_manifest(folder)["files"])


# -- New and changed folders -----------------------------------------------------------------------


def test_a_new_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "model"
    with model_folder.new_folder(target) as stage:
        fill(stage)
        assert not target.exists()
    assert version(target) == "1"
    assert names(target.parent) == ["model"]


def test_a_new_folder_does_not_touch_what_is_there(folder):
    with pytest.raises(AugSelfError, match="model exists"), model_folder.new_folder(folder):
        pytest.fail("nothing is to be built where something is")
    assert version(folder) == "1"


class Failure(Exception):
    pass


def fail(stage, error):
    assert version(stage)
    raise error


@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt, OSError])
def test_a_failure_leaves_nothing_new(tmp_path, error):
    with pytest.raises(error), model_folder.new_folder(tmp_path / "model") as stage:
        fail(fill(stage), error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt, OSError])
def test_a_failed_change_leaves_the_old_folder(folder, error):
    with pytest.raises(error), model_folder.changed_folder(folder) as stage:
        fail(fill(stage, "2"), error)
    assert version(folder) == "1"
    assert names(folder.parent) == ["model"]


@pytest.fixture(params=["one step", "two renames"])
def exchange(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(model_folder.ctypes, "CDLL", lambda name: None)
    elif sys.platform != "linux":
        pytest.skip("renameat2 is Linux's")


def test_a_change_is_exchanged_and_leaves_nothing_beside(folder, exchange):
    for expected in ("2", "3"):
        with model_folder.changed_folder(folder) as stage:
            assert names(stage) == names(folder)  # a copy to work on
            fill(stage, expected)
            assert version(folder) != expected
        assert version(folder) == expected
        assert names(folder.parent) == ["model"]


def test_a_file_taken_away_in_a_change_is_gone(folder, exchange):
    with model_folder.changed_folder(folder) as stage:
        (stage / "onnx/features.onnx").unlink()
        model_folder.write_manifest(stage)
    assert not (model_folder.verify(folder) / "onnx/features.onnx").exists()


def test_of_a_link_the_folder_it_leads_to_is_changed(folder, tmp_path, exchange):
    link = tmp_path / "link"
    link.symlink_to(folder)
    with model_folder.changed_folder(link) as stage:
        fill(stage, "2")
    assert link.is_symlink()
    assert version(link) == version(folder) == "2"
    assert names(tmp_path) == ["link", "model"]


def test_a_folder_given_by_a_relative_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with model_folder.changed_folder(Path("model")) as stage:
        fill(stage, "2")
    assert version(folder) == "2"


# -- Killed in the middle --------------------------------------------------------------------------

WRITER = """
    import os, shutil, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from augself_hub import folder as model_folder
    from {module} import fill

    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    folder = Path({folder!r})
    {setup}
    with model_folder.{manager}(folder) as stage:
        fill(stage, "2")
        {inside}
"""
TWO_RENAMES = "model_folder.ctypes.CDLL = lambda name: None; "
MOMENTS = {
    "while building": ("", "killed()", "1"),
    "before the exchange": ("model_folder._exchange = killed", "", "1"),
    "after the exchange": ("model_folder.shutil.rmtree = EXCHANGED", "", "2"),
    "before the first rename": (TWO_RENAMES + "Path.rename = killed", "", "1"),
    "between the renames": (TWO_RENAMES + "rename = Path.rename; Path.rename = BETWEEN", "", "1"),
    "after the second rename": (TWO_RENAMES + "model_folder.shutil.rmtree = EXCHANGED", "", "2"),
}
HOOKS = {
    "EXCHANGED": (
        "lambda path, **_: killed() if (folder / 'model.safetensors').exists() and "
        "(folder / 'model.safetensors').read_text() == 'weights2' else None"
    ),
    "BETWEEN": "lambda a, b: rename(a, b) if a == folder else killed()",
}


def run_and_be_killed(manager, folder, setup, inside):
    for name, hook in HOOKS.items():
        setup = setup.replace(name, hook)
    script = textwrap.dedent(WRITER).format(
        tests=str(Path(__file__).parent), module=Path(__file__).stem, folder=str(folder),
        manager=manager, setup=setup, inside=inside,
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_changing_the_old_folder_is_whole_or_the_new(folder, moment, monkeypatch):
    setup, inside, expected = MOMENTS[moment]
    if TWO_RENAMES in setup:
        monkeypatch.setattr(model_folder.ctypes, "CDLL", lambda name: None)
    run_and_be_killed("changed_folder", folder, setup, inside)
    assert version(hub.resolve(folder)) == expected
    with model_folder.changed_folder(
        folder
    ) as stage:  # and what the killed one left is in nobody's way
        fill(stage, "3")
    assert version(folder) == "3"
    assert names(folder.parent) == ["model"]


def test_what_was_killed_between_two_renames_can_be_changed_without_being_opened(folder):
    run_and_be_killed("changed_folder", folder, *MOMENTS["between the renames"][:2])
    assert not folder.exists()
    with model_folder.changed_folder(folder) as stage:
        assert version(stage) == "1"
        fill(stage, "3")
    assert version(folder) == "3"


@pytest.mark.parametrize(
    ("setup", "inside", "expected"),
    [("", "killed()", None), ("Path.rename = killed", "", None),
     ("model_folder.shutil.rmtree = EXCHANGED", "", "2")],
)  # fmt: skip
def test_killed_while_making_a_new_folder(tmp_path, setup, inside, expected):
    folder = tmp_path / "model"
    run_and_be_killed("new_folder", folder, setup, inside)
    if expected is None:
        assert not folder.exists()
        with model_folder.new_folder(folder) as stage:
            assert names(stage) == []  # nothing of the killed one's
            fill(stage, "2")
    assert version(folder) == "2"
    assert names(tmp_path) == ["model"]


# -- Folders of strangers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", ".", "./", "onnx//x.onnx", "/x.onnx", "onnx/../x.onnx", "onnx/a\0.onnx", "onnx/a\\b.onnx",
     "C:x.onnx", f"onnx/{'é' * 200}.onnx", "a/" * 20 + "x.onnx"],
)  # fmt: skip
def test_a_manifest_names_files_of_a_folder_alone(folder, name):
    manifest = json.loads((folder / "augself/manifest.json").read_text())
    manifest["files"][name] = "0" * 64
    (folder / "augself/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFolderError, match=r"names '.*', which is not in the folder"):
        model_folder.verify(folder)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["sub/config.json", "modules.json", "onnx/config.json"])
def test_what_never_ends_is_not_waited_for(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelFolderError, match=f"{name} cannot be read: it is no regular file"):
        model_folder.verify(folder)


@pytest.mark.parametrize("target", [".", "onnx", "link", "nowhere"])
def test_a_link_leads_to_a_file(folder, target, tmp_path):
    (folder / "link").symlink_to(target)
    with pytest.raises(ModelFolderError, match=r"link is a link to no file"):
        hub.pull(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


SPECS = {
    "a side that no memory holds": ({"policy": {"size": 10**9}}, r"policy\.size is 1000000000"),
    "a side in words": ({"policy": {"size": "large"}}, r"size is 'large', not a whole number"),
    "a range of one": ({"policy": {"scale": [0.5]}}, r"Policy\.scale is \(0\.5,\), not Range"),
    "a shape without width": ({"policy": {"ratio": [0, 0]}}, r"policy\.ratio is 0"),
    "a factor without end": ({"policy": {"sigma": [0, 1e9]}}, r"policy\.sigma is 1000000000"),
    "another saturation": ({"policy": {"saturate": "lab"}}, r"policy\.saturate is 'lab'"),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_policy_that_no_view_can_be_made_by(folder, case):
    change, message = SPECS[case]
    content = json.loads((folder / "augself/config.json").read_text())
    content["policy"] |= change["policy"]
    (folder / "augself/config.json").write_text(json.dumps(content))
    with pytest.raises(ModelFolderError, match=message):
        model_folder.read_spec(folder)


DIMENSIONS = {
    "name": ("y\n# pwned\x1b[2J", r"Dimension\.name is 'y\\n"),
    "unit": ("x" * 1000, r"Dimension\.unit"),
    "confidence_interval": ("abc", r"Dimension\.confidence_interval is 'abc'"),
    "score": ("good", r"Dimension\.score is 'good'"),
    "learned": ("yes", r"Dimension\.learned is 'yes'"),
    "antisymmetric": (1, r"Dimension\.antisymmetric is 1"),
}


@pytest.mark.parametrize("field", DIMENSIONS)
def test_a_dimension_that_cannot_be_shown(folder, field):
    value, message = DIMENSIONS[field]
    content = json.loads((folder / "augself/config.json").read_text())
    content["heads"]["crop"]["dimensions"][0][field] = value
    (folder / "augself/config.json").write_text(json.dumps(content))
    with pytest.raises(ModelFolderError, match=message):
        model_folder.read_spec(folder)


@pytest.mark.parametrize("count", [0, 65, 100_000])
def test_heads_have_a_few_dimensions(folder, count):
    content = json.loads((folder / "augself/config.json").read_text())
    crop = content["heads"]["crop"]
    crop["dimensions"] = crop["dimensions"][:1] * count
    (folder / "augself/config.json").write_text(json.dumps(content))
    with pytest.raises(ModelFolderError, match=rf"a head of {count} dimensions"):
        model_folder.read_spec(folder)


# -- Two at once -----------------------------------------------------------------------------------

HOLDER = """
    import sys
    from pathlib import Path
    from augself_hub import folder as model_folder
    made = getattr(model_folder, sys.argv[1])
    with made(Path(sys.argv[2])) as stage:
        (stage / "ours").write_text("1")
        print("inside", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["new_folder", "changed_folder"])
def test_two_processes_do_not_make_one_folder(tmp_path, how):
    """The second would empty the folder that the first one fills, and both would fill one."""
    place = tmp_path / "model"
    if how == "changed_folder":
        fill(place)
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), how, str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    made = getattr(model_folder, how)
    assert other.stdout.readline() == "inside\n"
    with (
        pytest.raises(AugSelfError, match=r"another process is writing .*/model: wait for it"),
        made(place),
    ):
        pytest.fail("it is the other one's")
    other.communicate("\n")
    assert other.returncode == 0
    assert (place / "ours").read_text() == "1"
    assert names(tmp_path) == ["model"]


def test_a_folder_cannot_be_changed_before_the_last_change_is_at_its_end(folder, monkeypatch):
    """After the exchange the old folder has the stage's name until it is removed."""
    seen = []

    def looked_at(stage, target):
        exchange(stage, target)
        with (
            pytest.raises(AugSelfError, match="another process"),
            model_folder.changed_folder(target),
        ):
            pytest.fail("the first has not ended")
        seen.append(version(target))

    exchange = model_folder._exchange
    monkeypatch.setattr(model_folder, "_exchange", looked_at)
    with model_folder.changed_folder(folder) as stage:
        fill(stage, "2")
    assert seen == ["2"] and names(folder.parent) == ["model"]


def test_what_a_killed_one_has_left_is_no_part_of_the_next(tmp_path):
    left = tmp_path / ".model.new"
    (left / "deep").mkdir(parents=True)
    (left / "deep/old").write_text("x")
    (left / "old").write_text("x")
    (left / "link").symlink_to(tmp_path)
    with model_folder.new_folder(tmp_path / "model") as stage:
        assert names(stage) == []
        fill(stage)
    assert names(tmp_path) == ["model"]
