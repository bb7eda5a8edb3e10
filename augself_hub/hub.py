"""The model folder as files: resolve a name to a folder, verify it, change it in one step.

A model folder is the only thing that passes between training, the Hub and serving (DESIGN.md
section 3). It ends with augself/manifest.json, the sha256 of every other file; a folder that
disagrees with its manifest is refused, naming the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError, ModelFolderError

EMBEDDED = Path(__file__).parent / "pretrained"
MANIFEST = Path("augself/manifest.json")
CONFIG = Path("augself/config.json")
HEADS = Path("augself/model.safetensors")
ENCODER_GRAPH = Path("onnx/model.onnx")
HEADS_GRAPH = Path("onnx/heads.onnx")
EVALUATION = Path("evaluation.json")
TRAINING_LOG = Path("training_log.json")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def resolve(model: str | os.PathLike[str] | None = None, revision: str | None = None) -> Path:
    """A folder, a Hub id (`org/name` or `org/name@revision`) or None -> a verified model folder.

    Args:
        model: None means the embedded demonstration model.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ModelFolderError: nothing is there, or it disagrees with its manifest.
    """
    if model is None:
        return verify(EMBEDDED)
    folder = Path(model)
    finish_exchange(folder)
    if folder.is_dir():
        return verify(folder)
    if isinstance(model, str) and _HUB_ID.fullmatch(model) and ".." not in model:
        return verify(_download(model, revision))
    raise ModelFolderError(f"no model at {model}: give a model folder or a Hub id (org/name)")


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    name, _, named_revision = model.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or named_revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFolderError(f"no model folder {model}, and the Hub says: {reason}") from error


def verify(folder: Path) -> Path:
    """Compare every file with augself/manifest.json.

    Returns:
        The folder.

    Raises:
        ModelFolderError: names the first file that is missing, changed or outside the folder.
    """
    for path, sha256 in read_manifest(folder)["files"].items():
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelFolderError(f"{folder / MANIFEST} names {path}, which is not in the folder")
        if not (folder / path).is_file():
            raise ModelFolderError(f"{folder / path} is missing: get the model again")
        if _sha256(folder / path) != sha256:
            raise ModelFolderError(f"{folder / path} is not the file its manifest names")
    return folder


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
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != path)
    manifest = {
        "files": {p.relative_to(folder).as_posix(): _sha256(p) for p in files},
        "versions": {name: v for name in _LIBRARIES if (v := _version(name))},
        "parity": parity,
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n")


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
        stage.rename(folder)


@contextlib.contextmanager
def changed_folder(folder: Path) -> Iterator[Path]:
    """Change a copy of a folder beside it; at the end the two are exchanged in one step."""
    folder = folder.resolve()  # of a link the folder is changed, not the link
    finish_exchange(folder)
    with _stage(folder) as stage:
        shutil.copytree(folder, stage, dirs_exist_ok=True)
        yield stage
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_LIBRARIES = ("augself-hub", "torch", "transformers", "onnxruntime-gpu", "onnxruntime", "onnx")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
