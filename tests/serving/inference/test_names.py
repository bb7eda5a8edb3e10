"""What models are called: as they are given, told apart, or as it is said."""

from __future__ import annotations

import shutil

import httpx
import pytest

from augself_hub.errors import UsageError
from serving.http.api import create_app
from serving.inference.names import named
from serving.inference.source import ModelSource


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([], ["embedded"]),
        (["runs/a/model"], ["model"]),
        (["runs/a/model/"], ["model"]),
        (["runs/a/model", "runs/b/model"], ["a-model", "b-model"]),
        (["runs/a/model", "other/a/model", "runs/b/model"],
         ["runs-a-model", "other-a-model", "b-model"]),
        (["runs/a/model", "runs/b/best"], ["model", "best"]),
        (["runs/a/model", "runs/a"], ["model", "a"]),
        (["runs/model", "model"], ["runs-model", "here-model"]),
        (["first=runs/a/model", "runs/b/model"], ["first", "model"]),
        (["first=org/name@v1", "org/name@v1"], ["first", "org/name@v1"]),
        (["lr=0.1/model"], ["model"]),
        (["x=lr=0.1/model"], ["x"]),
    ],
)  # fmt: skip
def test_names_are_short_and_told_apart(given, names, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("runs/a", "runs/b", "other/a", "runs", ".", "lr=0.1"):
        (tmp_path / "here" / folder / "model").mkdir(parents=True)
    (tmp_path / "here/runs/b/best").mkdir()
    assert [name for name, _ in named(given)] == names


def test_a_name_keeps_its_model():
    assert named(["a=org/one", "org/two", "/nowhere/at/all"]) == [
        ("a", "org/one"),
        ("org/two", "org/two"),
        ("/nowhere/at/all", "/nowhere/at/all"),
    ]


@pytest.mark.parametrize("given", [["runs/a/model"] * 2, ["x=runs/a/model", "x=runs/b/model"]])
def test_one_name_for_two_is_refused_with_the_mend(given, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in "ab":
        shutil.copytree(tiny_model, f"runs/{run}/model")
    sources = [ModelSource.find(m, "cpu", 1, "fp32", "exact", name=n) for n, m in named(given)]
    with pytest.raises(UsageError, match=r"the same name, \w+: give one another, --model NAME="):
        create_app(sources)


def test_two_runs_are_served_side_by_side(
    start_server, tiny_model, other_tiny_model, tmp_path, pixels, encoded, expected, vectors
):
    """Each answers under its name, /v1 and /v2 alike; the other's features are others."""
    for run, model in (("a", tiny_model), ("b", other_tiny_model)):
        shutil.copytree(model, tmp_path / run / "model")
    folders = [f"--model={tmp_path / run / 'model'}" for run in "ab"]
    server = start_server(*folders, f"--model=again={tmp_path / 'a/model'}", "--lazy")
    with httpx.Client(base_url=server.url, timeout=20) as client:
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert listed == ["tiny", "a-model", "b-model", "again"]
        files = {"image": encoded(pixels(1))}
        found = {
            name: vectors(client.post("/v1/embeddings", files=files, data={"model": name}))[0]
            for name in listed
        }
        for name in (*listed, "a-model_heads"):
            assert client.get(f"/v2/models/{name}").json()["name"] == name
    wanted = pytest.approx(expected(pixels(1)), rel=1e-4, abs=1e-5)
    assert found["a-model"] == wanted and found["again"] == wanted
    assert found["b-model"] != wanted
