"""The lists of models, and the commands that handle them by name."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from augself_hub import hub
from augself_hub.cli import augself, main
from augself_hub.folder import EVALUATION, read_manifest, read_spec, verify

PAGE = Path(__file__).parents[2] / "docs/hub.md"
NAME = "somebody/tiny"


def run(*arguments):
    return CliRunner().invoke(augself, arguments, catch_exceptions=False)


# -- Lists -----------------------------------------------------------------------------------------


def test_what_is_here_and_what_can_be_had(published, model_folder):
    assert [listing for listing in hub.list_models() if listing.place == "cache"] == []
    first = hub.resolve(NAME)
    (found,) = (listing for listing in hub.list_models() if listing.place == "cache")
    assert (found.name, found.source, found.measured) == (f"{NAME}@main", str(first), "1 results")
    assert hub.resolve(found.name) == first
    everything = hub.list_models(everywhere=True)
    assert set(hub.KNOWN) < set(everything)
    (other,) = (listing for listing in everything if listing.place == "Hub")
    assert (other.name, other.source) == (NAME, f"{published.url}/{NAME}")


def test_what_is_known_is_frozen_and_carries_no_licence_it_does_not_have():
    embedded, *official = hub.KNOWN
    assert embedded.license == read_spec(hub.resolve(None)).provenance["license"]
    results = json.loads((hub.EMBEDDED / EVALUATION).read_text())["results"]
    named = embedded.measured.split(":")[0].split(", ")
    assert set(named) <= {result["task"] for result in results}
    for listing in official:
        assert listing.license == "none stated"
        assert "augself convert" in listing.source
        assert listing.measured == ""
        with pytest.raises(dataclasses.FrozenInstanceError):
            listing.license = "mit"


def test_a_snapshot_this_version_cannot_read_is_still_listed(published):
    folder = hub.resolve(NAME)
    (folder / "augself/config.json").unlink()
    (folder / "augself/config.json").write_text('{"format": 99}')
    found = hub.Listing(f"{NAME}@main", "cache", str(folder), measured="1 results")
    assert found in hub.list_models()


# -- The command line ------------------------------------------------------------------------------


def test_push_pull_verify_and_list_print_tables(local_hub, model_folder, tmp_path):
    pushed = run("push", str(model_folder), NAME, "--private", "--message", "First")
    assert f"published as {local_hub.url}/{NAME}/commit/" in pushed.output
    assert local_hub.repositories[NAME].private
    pulled = run("pull", NAME, str(tmp_path / "pulled"))
    verified = run("verify", NAME)
    for result in (pushed, pulled, verified):
        rows = [line.split() for line in result.stdout.splitlines()]
        assert rows[0] == ["file", "bytes", "sha256"]
        sizes = {row[0]: row[1] for row in rows[1:-1]}
        assert sizes["evaluation.json"] == str((model_folder / "evaluation.json").stat().st_size)
        here = set(read_manifest(model_folder)["files"]) | {"evaluation.json", "training_log.json"}
        assert set(sizes) - {"README.md"} == here - {"README.md"}
    listed = run("list").output
    assert f"{NAME}@main" in listed and "official" not in listed
    everything = run("list", "--all").output
    assert all(listing.name in everything for listing in hub.KNOWN)


def test_a_dry_run_says_what_is_uploaded_deleted_and_kept(published, model_folder):
    files = {**published.files(NAME), "LICENSE": b"mine", "old.safetensors": b"old"}
    published.repositories[NAME].commit(files)
    commits = len(published.repositories[NAME].commits)
    shown = run("push", str(model_folder), NAME, "--dry-run").stdout
    assert len(published.repositories[NAME].commits) == commits
    rows = [tuple(line.split()) for line in shown.splitlines()]
    assert rows[0] == ("what", "file")
    assert ("upload", "model.safetensors") in rows and ("upload", "README.md") in rows
    assert ("delete", "old.safetensors") in rows and ("keep", "LICENSE") in rows
    assert "nothing was changed" in shown


def test_the_page_about_the_hub_does_what_it_says(local_hub, model_folder, tmp_path, monkeypatch):
    text = PAGE.read_text()
    (push,) = re.findall(r"```bash\naugself (.*)\n```", text)
    (python,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    commands = re.findall(r"^\| `augself (.*?)` \|", text, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copytree(model_folder, "run/model")
    assert run(*push.split()).exit_code == 0
    repository = local_hub.repositories["your-name/your-model"]
    repository.tags["v1"] = repository.commits[-1][0]
    exec(python, names := {})
    assert names["model"].folder.is_relative_to(tmp_path / "cache")
    assert len(commands) == 4
    for command in commands:
        assert run(*command.split()).exit_code == 0
    assert verify(tmp_path / "DIR")


def test_an_error_is_one_line_and_status_1(local_hub, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", "nobody/nothing"])
    assert exit_.value.code == 1
    assert capsys.readouterr().err.startswith("error: nobody/nothing: the Hub has no such model")
