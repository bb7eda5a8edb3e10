"""The model folder as files: its manifest, its spec, and how it is made and changed in one step.

It ends with augself/manifest.json, the sha256 of every file that computes: weights, graphs and
configurations. A folder that disagrees with its manifest is refused, naming the file. Cards,
licences, pictures and results are the owner's.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from augself_hub import __version__
from augself_hub.augmentations.spec import CHOICES, MatcherSpec, Policy, Spec
from augself_hub.configs import (
    MAX_FEATURES,
    MAX_SIDE,
    PICKLES,
    computes,
    number,
    read_json,
    refuse_code,
)
from augself_hub.errors import AugSelfError, ModelFolderError, first_line

CARD = Path("README.md")
ENCODER = Path("model.safetensors")
MANIFEST = Path("augself/manifest.json")
CONFIG = Path("augself/config.json")
HEADS = Path("augself/model.safetensors")
MATCHER = Path("augself/matcher.safetensors")
FEATURES_GRAPH = Path("onnx/features.onnx")  # what serving runs (precision.py has all names)
STOCK_GRAPH = Path("onnx/model.onnx")  # the encoder as transformers.js calls it; of 0.1 the former
HEADS_GRAPH = Path("onnx/heads.onnx")
MATCHER_GRAPH = Path("onnx/matcher.onnx")
EVALUATION = Path("evaluation.json")
TRAINING_LOG = Path("training_log.json")
CURVES = Path("curves.png")

try:
    import fcntl
except ModuleNotFoundError:  # of Windows, where folders have no locks
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
_DEEPEST, _LONGEST = 16, 255  # folders on the way to a file; bytes of a name
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def verify(folder: Path) -> Path:
    """Compare what computes in a folder with augself/manifest.json, file by file.

    Cards, licences, pictures and whatever else computes nothing are the owner's: they may be
    changed, added or missing. Names that begin with a dot (.gitattributes, .cache) belong to other
    tools: they are not read.

    Returns:
        The folder.

    Raises:
        ModelFolderError: names the first file that is missing, changed, not in the manifest, a
            pickle, or a link out of the folder; or the field of a configuration by which a reader
            would run code.
    """
    named = read_manifest(folder)["files"]
    places = [folder.resolve()]
    for place in places[0].parents:  # the model may be in a subfolder
        if place.name == "snapshots":  # of the Hub's cache, which keeps the files in its blobs
            places += [place.parent / "blobs", place.parents[1] / "blobs"]
            break
    for path in files_of(folder):
        _refuse_foreign(folder, path, named, places)
    for path, sha256 in named.items():
        if not _is_name(path):
            raise ModelFolderError(
                f"{folder / MANIFEST} names {path[:80]!r}, which is not in the folder"
            )
        if not computes(path):
            continue  # folders of 0.1 name their card and pictures as well
        if not (folder / path).is_file():
            raise ModelFolderError(f"{folder / path} is missing: get the model again")
        if file_sha256(folder / path) != sha256:
            raise ModelFolderError(f"{folder / path} is not the file its manifest names")
    refuse_code(folder)
    return folder


def own_folder(model: str | os.PathLike[str], work: str) -> Path:
    """The folder of a model that is to be changed or published: a copy of one's own.

    Args:
        work: what is done with it, as a command is called.

    Raises:
        ModelFolderError: it is no folder. Of a Hub id the client's own cache would be changed.
    """
    if not Path(model).is_dir():
        raise ModelFolderError(
            f"{model} is no folder: of a model of the Hub, augself pull {model} FOLDER, then "
            f"{work} that"
        )
    return Path(model)


def _is_name(path: str) -> bool:
    """Whether a file in a folder can be called so, on any system."""
    parts = path.split("/")
    return len(parts) <= _DEEPEST and all(
        part not in ("", ".", "..")
        and not any(letter in part for letter in "\0\\:")
        and len(part.encode(errors="surrogatepass")) <= _LONGEST
        for part in parts
    )


def files_of(folder: Path) -> list[str]:
    """Every file and link, relative to the folder, but for other tools' (a dot comes first)."""
    paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    return sorted(p.as_posix() for p in paths if not any(part[0] == "." for part in p.parts))


def _refuse_foreign(
    folder: Path, path: str, named: Collection[str], places: Sequence[Path]
) -> None:
    """A pickle, a link out of the places where files may be, or what no manifest names."""
    if Path(path).suffix.lower() in PICKLES:
        raise ModelFolderError(
            f"{folder / path} may be a pickle, and loading one runs what is in it: "
            "convert it to safetensors and remove it"
        )
    real = os.path.realpath(folder / path)
    if not any(Path(real).is_relative_to(place) for place in places):
        raise ModelFolderError(f"{folder / path} is a link out of the folder, to {real}")
    if not Path(real).is_file():
        raise ModelFolderError(
            f"{folder / path} is a link to no file: put the files themselves into the folder"
        )
    if computes(path) and path not in named and path != MANIFEST.as_posix():
        raise ModelFolderError(
            f"{folder / path} is not in {MANIFEST}, and would be read as a part of the model: "
            "remove it from the folder"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """augself/manifest.json: {"files": {path: sha256}, "versions": {...}, "parity": {...}}."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ModelFolderError(f"{path} is missing: this is not a complete model folder")
    manifest = read_json(path)
    manifest.setdefault("parity", {})
    for field in ("files", "parity"):
        if not isinstance(manifest.get(field), dict):
            raise ModelFolderError(f"{path} cannot be read: {field} is no object")
    if not all(isinstance(v, str) for v in manifest["files"].values()):
        raise ModelFolderError(f"{path} cannot be read: files does not name sha256s")
    return manifest


def read_spec(folder: Path) -> Spec:
    """augself/config.json of a model folder."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelFolderError(f"{path} is missing: this is not a model folder")
    content = read_json(path)
    try:
        spec = Spec.from_json(path.read_text())
    except ModelFolderError as error:
        raise ModelFolderError(f"{folder}: {error}") from error
    if not isinstance(content.get("provenance", {}), dict):
        raise ModelFolderError(f"{path}: provenance is no object")
    _check_policy(spec.policy, f"{path}: policy")
    number(spec.features, f"{path}: features", 1, MAX_FEATURES, whole=True)
    number(spec.hidden, f"{path}: hidden", 1, MAX_FEATURES, whole=True)
    number(spec.uncertainty, f"{path}: uncertainty", 0, MAX_FEATURES, whole=True)
    matched = {} if spec.matcher is None else spec.matcher.heads
    named = [(f"heads.{kind}", head) for kind, head in spec.heads.items()]
    for name, head in named + [(f"matcher.heads.{kind}", head) for kind, head in matched.items()]:
        what = f"{path}: {name}"
        if head.type == "classes":
            number(head.classes, f"{what}.classes", 2, MAX_FEATURES, whole=True)
        for dimension in head.dimensions:
            number(dimension.std, f"{what}.{dimension.name}.std", 1e-12, 1e12)
            if dimension.standard_error is not None:
                number(dimension.standard_error, f"{what}.{dimension.name}.standard_error", 0, 1e12)
    if spec.matcher is not None:
        _check_matcher(spec.matcher, f"{path}: matcher")
    return spec


def _check_policy(policy: Policy, what: str) -> None:
    """Views are made by it, in the demo too: no side or range may take all memory, or none."""
    number(policy.size, f"{what}.size", 1, MAX_SIDE, whole=True)
    for name, words in CHOICES.items():
        if getattr(policy, name) not in words:
            raise ModelFolderError(f"{what}.{name} is {getattr(policy, name)!r}: upgrade")
    for name, value in dataclasses.asdict(policy).items():
        for one in value if isinstance(value, tuple) else (value,):
            if name not in ("size", *CHOICES):
                least = 1e-6 if name in ("scale", "ratio") else 0
                number(one, f"{what}.{name}", least, 1e3)


def _check_matcher(matcher: MatcherSpec, what: str) -> None:
    number(matcher.level, f"{what}.level", -1000, -1, whole=True)
    for field, most in (("channels", 1 << 14), ("cells", 64)):
        number(matcher.shape.get(field), f"{what}.shape.{field}", 1, most, whole=True)
    for field in ("flips", "turns"):
        if not isinstance(matcher.shape.get(field), bool):
            raise ModelFolderError(f"{what}.shape.{field} is neither true nor false")
    for field, value in matcher.shape.items():
        for one in value if isinstance(value, tuple) else (value,):
            if not isinstance(one, bool):
                number(one, f"{what}.shape.{field}", -(1 << 14), 1 << 14)
    crop = matcher.heads.get("crop")
    if crop is None or len(crop.dimensions) != 4:
        raise ModelFolderError(f"{what}.heads.crop does not say its four dimensions")


def write_manifest(folder: Path, parity: dict[str, float] | None = None) -> None:
    """Write augself/manifest.json over what computes there now. Always the last file.

    Args:
        parity: measured differences between graphs and torch; None keeps those already recorded.
    """
    path = folder / MANIFEST
    before = read_manifest(folder) if path.is_file() else None
    if parity is None:
        parity = before["parity"] if before else {}
    if before:
        card = generated_card(before)
    else:
        card = file_sha256(folder / CARD) if (folder / CARD).is_file() else None
    files = [n for n in files_of(folder) if computes(n) and n != MANIFEST.as_posix()]
    manifest = {
        "files": {name: file_sha256(folder / name) for name in files},
        "versions": versions(),
        "parity": parity,
        "card": {"generated": card},
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n")


def generated_card(manifest: dict[str, Any]) -> str | None:
    """The sha256 of README.md as it was last generated: another README.md is the owner's."""
    noted = manifest.get("card")
    if not isinstance(noted, dict):  # of 0.1
        named: str | None = manifest["files"].get(CARD.as_posix())
        return named
    return noted.get("generated")


def card_is_edited(folder: Path) -> bool:
    """Whether somebody has changed README.md since it was generated."""
    if not ((folder / CARD).is_file() and (folder / MANIFEST).is_file()):
        return False
    generated = generated_card(read_manifest(folder))
    return generated is None or file_sha256(folder / CARD) != generated


def versions() -> dict[str, str]:
    """Ours, and the installed ones of the libraries that decide what a model answers."""
    found = {"augself-hub": __version__}  # of an editable install the metadata may be older
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Build a new folder beside its place; it appears by one rename, whole or not at all.

    Raises:
        AugSelfError: something is already there, another process is making it, or there is no room.
    """
    if folder.exists():
        raise AugSelfError(f"{folder} exists: choose another output or remove it")
    with _stage(folder) as stage:
        yield stage
        _share(stage)
        stage.rename(folder)


@contextlib.contextmanager
def changed_folder(folder: Path) -> Iterator[Path]:
    """Change a copy of a folder beside it; at the end the two are exchanged in one step.

    Raises:
        AugSelfError: another process changes it, too, or there is no room.
    """
    folder = folder.resolve()  # of a link the folder is changed, not the link
    finish_exchange(folder)
    lock = _lock(folder, folder)  # it takes the stage's place until it is removed
    try:
        with _stage(folder) as stage:
            shutil.copytree(folder, stage, dirs_exist_ok=True)
            yield stage
            _share(stage)
            _exchange(stage, folder)
    finally:
        os.close(lock)


def finish_exchange(folder: Path) -> None:
    """Put the old folder back where an exchange by two renames was killed between them."""
    if not folder.exists() and _set_aside(folder).is_dir():
        _set_aside(folder).rename(folder)


@contextlib.contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = folder.parent / f".{folder.name}.new"
    lock = _lock(stage, folder, make=True)
    try:
        for path in stage.iterdir():  # of a run that was killed
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield stage
    except SafetensorError as error:  # no OSError, also where the disk is full
        raise no_room(folder, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(lock)


def no_room(place: Path, error: Exception) -> AugSelfError:
    """What is raised where weights cannot be written: their writers have errors of their own."""
    return AugSelfError(
        f"{place} cannot be written ({first_line(error)}): make room, then try again"
    )


def _lock(place: Path, folder: Path, make: bool = False) -> int:
    """A descriptor of a folder, by which no other process holds it; closed, it is given back.

    Args:
        make: the folder, if it is not there. folder: what is made or changed, for the message.

    Raises:
        AugSelfError: another process makes or changes it.
    """
    while True:
        if make:
            place.mkdir(exist_ok=True)
        if fcntl is None:
            return os.open(os.devnull, os.O_RDONLY)
        try:
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            if not make:
                raise
            continue  # the other one has just ended
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise AugSelfError(
                f"another process is writing {folder}: wait for it, or choose another output"
            ) from None
        except OSError as error:  # a file system without locks
            log.debug("%s cannot be locked: %s", place, error)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), place.lstat()):
                return lock
        os.close(lock)  # it was renamed or removed between the two steps: look again


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
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    places = (_AT_FDCWD, os.fsencode(stage), _AT_FDCWD, os.fsencode(folder))
    if renameat2 is not None and renameat2(*places, _RENAME_EXCHANGE) == 0:
        return
    shutil.rmtree(_set_aside(folder), ignore_errors=True)  # of an exchange killed at its end
    folder.rename(_set_aside(folder))
    stage.rename(folder)
    shutil.rmtree(_set_aside(folder))


def file_sha256(path: Path) -> str:
    """Of one file, as a manifest names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_RUNTIMES = ("onnxruntime-gpu", "onnxruntime", "onnxruntime-openvino")
_LIBRARIES = ("torch", "transformers", *_RUNTIMES, "onnx")
