"""The model folder as files: its manifest, its spec, and how it is made and changed in one step.

It ends with augself/manifest.json, the sha256 of every other file; a folder that disagrees with its
manifest is refused, naming the file (DESIGN.md section 3).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError, ModelFolderError

ENCODER = Path("model.safetensors")
MANIFEST = Path("augself/manifest.json")
CONFIG = Path("augself/config.json")
HEADS = Path("augself/model.safetensors")
ENCODER_GRAPH = Path("onnx/model.onnx")
HEADS_GRAPH = Path("onnx/heads.onnx")
EVALUATION = Path("evaluation.json")
TRAINING_LOG = Path("training_log.json")
CURVES = Path("curves.png")

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def verify(folder: Path) -> Path:
    """Compare a folder with augself/manifest.json, file by file.

    Names that begin with a dot (.gitattributes, .cache) belong to other tools: they are not read.

    Returns:
        The folder.

    Raises:
        ModelFolderError: names the first file that is missing, changed, not in the manifest, a
            pickle, or a link out of the folder.
    """
    named = read_manifest(folder)["files"]
    for path in _files(folder):
        _refuse_foreign(folder, path, named)
    for path, sha256 in named.items():
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelFolderError(f"{folder / MANIFEST} names {path}, which is not in the folder")
        if not (folder / path).is_file():
            raise ModelFolderError(f"{folder / path} is missing: get the model again")
        if file_sha256(folder / path) != sha256:
            raise ModelFolderError(f"{folder / path} is not the file its manifest names")
    return folder


def _files(folder: Path) -> list[str]:
    """Every file and link, relative to the folder, but for other tools' (a dot comes first)."""
    paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    return sorted(p.as_posix() for p in paths if not any(part[0] == "." for part in p.parts))


def _refuse_foreign(folder: Path, path: str, named: Collection[str]) -> None:
    if Path(path).suffix.lower() in PICKLES:
        raise ModelFolderError(
            f"{folder / path} may be a pickle, and loading one runs what is in it: "
            "convert it to safetensors and remove it"
        )
    real = os.path.realpath(folder / path)
    if not any(Path(real).is_relative_to(place) for place in _places(folder)):
        raise ModelFolderError(f"{folder / path} is a link out of the folder, to {real}")
    if path not in named and path != MANIFEST.as_posix():
        raise ModelFolderError(f"{folder / path} is not in {MANIFEST}: remove it from the folder")


def _places(folder: Path) -> list[Path]:
    """Where a folder's files may be: in it or, of a snapshot in the Hub's cache, in its blobs."""
    folder = folder.resolve()
    if folder.parent.name != "snapshots":
        return [folder]
    repository = folder.parents[1]
    return [folder, repository / "blobs", repository.parent / "blobs"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """augself/manifest.json: {"files": {path: sha256}, "versions": {...}, "parity": {...}}."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ModelFolderError(f"{path} is missing: this is not a complete model folder")
    try:
        manifest = json.loads(path.read_text())
        manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error!r}") from error
    return manifest


def read_spec(folder: Path) -> Spec:
    """augself/config.json of a model folder."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelFolderError(f"{path} is missing: this is not a model folder")
    return Spec.from_json(path.read_text())


def write_manifest(folder: Path, parity: dict[str, float] | None = None) -> None:
    """Write augself/manifest.json over the files that are there now. Always the last file.

    Args:
        parity: measured differences between graphs and torch; None keeps those already recorded.
    """
    path = folder / MANIFEST
    if parity is None:
        parity = json.loads(path.read_text())["parity"] if path.is_file() else {}
    files = [name for name in _files(folder) if name != MANIFEST.as_posix()]
    manifest = {
        "files": {name: file_sha256(folder / name) for name in files},
        "versions": versions(),
        "parity": parity,
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n")


def versions() -> dict[str, str]:
    """The installed versions of the libraries that decide what a model answers."""
    return {name: version for name in _LIBRARIES if (version := _version(name))}


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Build a new folder beside its place; it appears by one rename, whole or not at all.

    Raises:
        AugSelfError: something is already there.
    """
    if folder.exists():
        raise AugSelfError(f"{folder} exists: choose another output or remove it")
    with _stage(folder) as stage:
        yield stage
        _share(stage)
        stage.rename(folder)


@contextlib.contextmanager
def changed_folder(folder: Path) -> Iterator[Path]:
    """Change a copy of a folder beside it; at the end the two are exchanged in one step."""
    folder = folder.resolve()  # of a link the folder is changed, not the link
    finish_exchange(folder)
    with _stage(folder) as stage:
        shutil.copytree(folder, stage, dirs_exist_ok=True)
        yield stage
        _share(stage)
        _exchange(stage, folder)


def finish_exchange(folder: Path) -> None:
    """Put the old folder back where an exchange by two renames was killed between them."""
    if not folder.exists() and _set_aside(folder).is_dir():
        _set_aside(folder).rename(folder)


@contextlib.contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = folder.parent / f".{folder.name}.new"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _share(folder: Path) -> None:
    """safetensors writes for the owner alone; the files get what the folder itself was given."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _set_aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"


def _exchange(stage: Path, folder: Path) -> None:
    """Exchange two folders atomically where the system can (renameat2), else by two renames."""
    if _exchanged_in_one_step(stage, folder):
        return
    shutil.rmtree(_set_aside(folder), ignore_errors=True)  # of an exchange killed at its end
    folder.rename(_set_aside(folder))
    stage.rename(folder)
    shutil.rmtree(_set_aside(folder))


def _exchanged_in_one_step(stage: Path, folder: Path) -> bool:
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    arguments = (_AT_FDCWD, os.fsencode(stage), _AT_FDCWD, os.fsencode(folder), _RENAME_EXCHANGE)
    return renameat2 is not None and renameat2(*arguments) == 0


def file_sha256(path: Path) -> str:
    """Of one file, as a manifest names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_LIBRARIES = ("augself-hub", "torch", "transformers", "onnxruntime-gpu", "onnxruntime", "onnx")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
