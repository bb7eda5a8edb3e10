"""What the command line says where something is not installed, or not ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from augself_hub.cli import COMMANDS, EXTRAS

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "augself_hub/pretrained"


def augself(folder: Path, *arguments: str, without: str | None = None) -> tuple[int, str]:
    """The command as `python -m` starts it in a folder, with a package that is not installed."""
    hide = "" if without is None else f"sys.modules[{without!r}] = None; "
    code = f"import sys; {hide}from augself_hub.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": f"{folder}:{ROOT}", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (["pretrain", "--data", "x", "--output", "y"], "torch", "train"),
        (["fit-heads", "a/b", "--data", "x", "--output", "y"], "accelerate", "train"),
        (
            ["evaluate", "--tasks", "knn", "--datasets", "folder:x", "--output", "y"],
            "torch",
            "train,extract",
        ),
        (["convert", "x.pth", "--pretrain-data", "stl10", "--output", "y"], "torch", "model"),
        (["export", "--model", str(MODEL)], "torch", "export"),
        (["serve"], "fastapi", "serve"),
    ],
)
def test_each_command_names_its_own_extra(tmp_path, arguments, missing, extra):
    status, said = augself(tmp_path, *arguments, without=missing)
    install = f"pip install 'augself-hub[{extra}]'"
    assert (status, said) == (1, f"error: {missing} is not installed: {install}")


def test_every_command_that_needs_more_than_the_base_has_an_extra():
    assert set(COMMANDS) - set(EXTRAS) == {"push", "pull", "list", "list-images", "verify"}


@pytest.mark.parametrize(
    ("file", "arguments", "package"),
    [
        ("training.py", ["pretrain", "--help"], "training"),
        ("training/__init__.py", ["pretrain", "--help"], "training"),
        ("serving/__init__.py", ["serve", "--help"], "serving"),
        ("training.py", ["evaluate", "--help"], "training"),
        ("serving.py", ["extract", "--help"], "serving"),
    ],
)
def test_a_file_of_the_user_s_that_hides_a_package_is_named(tmp_path, file, arguments, package):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    status, said = augself(tmp_path, *arguments)
    stands = f"error: {tmp_path / file} stands in the way of the package {package} of augself-hub"
    assert (status, said) == (1, f"{stands}: rename it, or run from another folder")


def test_a_folder_without_a_package_in_it_hides_nothing(tmp_path):
    (tmp_path / "training").mkdir()
    assert augself(tmp_path, "pretrain", "--help") == (0, "")


@pytest.mark.parametrize("file", ["accelerate.py", "torch.py", "PIL.py"])
def test_a_file_that_hides_another_package_is_named_too(tmp_path, file):
    (tmp_path / file).write_text("")
    status, said = augself(tmp_path, "pretrain", "--data", "x", "--output", "y")
    assert status == 1
    assert said.startswith(f"error: {tmp_path / file} stands in the way of the package")


def test_public_names_name_theirs(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\nimport augself_hub\n"
        "try: augself_hub.AugSelfModel\nexcept augself_hub.errors.MissingExtra as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "torch is not installed: pip install 'augself-hub[model]'\n"
