"""Models by name: resolve, pull, push (pushing.py) and list them.

A name is a model folder, a Hub id (`org/name` or `org/name@revision`) or None, the embedded
demonstration model. huggingface_hub is imported where it is used: `augself --help` does without.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augself_hub.configs import CONFIGURATIONS, refuse_code
from augself_hub.errors import HubError, ModelFolderError, UsageError
from augself_hub.folder import (
    CONFIG,
    MANIFEST,
    files_of,
    finish_exchange,
    new_folder,
    read_spec,
    verify,
)
from augself_hub.hub_calls import patiently, plain_errors
from augself_hub.paths import path_text
from augself_hub.pushing import Plan as Plan
from augself_hub.pushing import plan as plan
from augself_hub.pushing import push as push
from augself_hub.pushing import reserve as reserve
from augself_hub.results import read_evaluation

EMBEDDED = Path(__file__).parent / "pretrained"
EMBEDDED_NAME = "embedded"
TAG = "augself"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Listing:
    """One model that can be had.

    Args:
        name: what to give as the model, or what its authors call it.
        place: embedded, cache, Hub or elsewhere.
        source: where it comes from and, if that takes more than its name, how to get it.
        license: as its publisher states it.
        measured: the results we measured for it; empty: none.
    """

    name: str
    place: str
    source: str
    license: str = ""
    measured: str = ""


_OFFICIAL = "https://github.com/hankook/AugSelf"
KNOWN = (
    Listing(
        "none given",
        "embedded",
        "in the package, as augself_hub/pretrained: trained by this project",
        "apache-2.0",
        "held-out pairs, linear probe, kNN, few-shot: its evaluation.json",
    ),
    Listing(
        "official AugSelf, ImageNet-100, ResNet-50",
        "elsewhere",
        f"{_OFFICIAL}/tree/master/checkpoints: download yourself, then "
        "augself convert FILE --pretrain-data imagenet100",
        "none stated",
    ),
    Listing(
        "official AugSelf, STL-10, ResNet-18",
        "elsewhere",
        f"{_OFFICIAL}: no download, only pretrain.py's command: run it, then "
        "augself convert FILE --pretrain-data stl10",
        "none stated",
    ),
)


def resolve(
    model: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    subfolder: str = "",
) -> Path:
    """A folder, a Hub id (`org/name` or `org/name@revision`) or None -> a verified model folder.

    Args:
        model: None means the embedded demonstration model.
        revision: branch, tag or commit of a Hub id.
        cache_dir: where the Hub's files are kept; None: the Hub client's own cache.
        local_files_only: ask only the cache, as HF_HUB_OFFLINE=1 does.
        token: of the Hub; None: the one `hf auth login` keeps.
        subfolder: where in the folder or repository the model is.

    Raises:
        ModelFolderError: nothing is there, or it disagrees with its manifest.
        HubError: the Hub did not give it.
        UsageError: a revision of what has none, or two revisions.
    """
    if model is not None:
        path_text("model", model)
    inside = Path(subfolder)
    if inside.is_absolute() or ".." in inside.parts:
        raise UsageError(f"subfolder {subfolder!r} is not in the model's folder")
    folder = (EMBEDDED if model is None else Path(model)) / inside
    finish_exchange(folder)
    if model is None or folder.is_dir():
        if revision is not None:
            raise UsageError(f"{folder} is a folder and has no revision {revision!r}")
        return verify(folder)
    if isinstance(model, str) and is_hub_id(model):
        name, revision = _with_revision(model, revision)
        return verify(_download(name, revision, cache_dir, local_files_only, token, inside))
    raise ModelFolderError(f"no model at {model}: give a model folder or a Hub id (org/name)")


def name_of(model: str | os.PathLike[str] | None) -> str:
    """What a model is called in answers: a folder's name, a Hub id, `embedded`."""
    if model is None:
        return EMBEDDED_NAME
    # A Hub id's folder is named after a commit; the id is the better name.
    return Path(model).resolve().name if Path(model).is_dir() else os.fspath(model)


def _with_revision(model: str, revision: str | None) -> tuple[str, str | None]:
    name, _, named = model.partition("@")
    if named and revision and named != revision:
        raise UsageError(f"{model} names a revision, and revision={revision!r} another: give one")
    revision = revision or named or None
    if revision is not None and (
        revision.startswith("/")
        or ".." in revision
        or not revision.isprintable()
        or any(letter in revision for letter in "\\ ~^:?*[")
    ):  # the client keeps it as a file's name below its cache
        raise UsageError(f"revision {revision!r} is no branch, tag or commit")
    return name, revision


def is_hub_id(text: str) -> bool:
    """Whether it has the form of `org/name` or `org/name@revision`; nothing is asked."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def _download(
    name: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    token: str | bool | None,
    inside: Path,
) -> Path:
    """A snapshot in the cache. The manifest comes first: what has none is not downloaded."""
    from huggingface_hub import snapshot_download

    where: dict[str, Any] = {"repo_id": name, "revision": revision, "cache_dir": cache_dir}
    where |= {"local_files_only": local_files_only, "token": token}
    with plain_errors(f"{name}@{revision}" if revision else name):
        wanted = (inside / MANIFEST).as_posix()
        manifest = patiently(snapshot_download, **where, allow_patterns=[wanted])
        if not (Path(manifest) / wanted).is_file():
            raise HubError(f"{name} is no AugSelf model: the Hub has no {wanted} in it")
        if inside != Path():
            where["allow_patterns"] = [f"{inside.as_posix()}/*"]
        return Path(patiently(snapshot_download, **where)) / inside


def fetch_encoder(name: str, *, token: str | bool | None = None) -> Path:
    """`org/name` or `org/name@revision` of any stock encoder -> a folder of the files that make it.

    Raises:
        HubError: the Hub did not give it, or has no config.json in it.
    """
    from huggingface_hub import snapshot_download

    name, revision = _with_revision(name, None)
    with plain_errors(f"{name}@{revision}" if revision else name):
        fetch = functools.partial(
            patiently, snapshot_download, repo_id=name, revision=revision, token=token
        )
        folder = Path(fetch(allow_patterns=[*CONFIGURATIONS, CONFIG.as_posix()]))
        if not (folder / "config.json").is_file():
            raise HubError(f"{name} is no encoder: the Hub has no config.json in it")
        refuse_code(folder)
        return Path(fetch(allow_patterns=[*CONFIGURATIONS, "model*.safetensors"]))


def pull(
    model: str | os.PathLike[str] | None,
    destination: str | os.PathLike[str],
    revision: str | None = None,
    *,
    token: str | bool | None = None,
) -> Path:
    """Copy a model into a new folder of one's own; it appears by one rename, verified.

    Returns:
        The new folder.

    Raises:
        AugSelfError: the destination exists; else what `resolve` raises.
    """
    source = resolve(model, revision, token=token)
    with new_folder(Path(path_text("destination", destination))) as stage:
        for path in files_of(source):
            (stage / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, stage / path)
        verify(stage)
    return Path(destination)


def list_models(everywhere: bool = False) -> list[Listing]:
    """The models on this machine: the embedded one and those in the Hub client's cache.

    Args:
        everywhere: also those that are known and, by the tag `augself`, those of the Hub.

    Raises:
        HubError: the Hub was to be asked and did not answer.
    """
    if everywhere:
        return [*KNOWN, *_cached(), *_published()]
    return [*(known for known in KNOWN if known.place == "embedded"), *_cached()]


def _cached() -> Iterator[Listing]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:  # nothing was ever downloaded
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        for revision in sorted(repository.revisions, key=lambda revision: revision.commit_hash):
            if (revision.snapshot_path / MANIFEST).is_file():
                names = sorted(revision.refs) or [revision.commit_hash]
                yield _listing(f"{repository.repo_id}@{names[0]}", Path(revision.snapshot_path))


def _listing(name: str, folder: Path) -> Listing:
    """What a snapshot says of itself. It is not verified here: that reads every byte."""
    terms = measured = ""
    # A snapshot of a newer version is still there, and not every model was measured.
    with contextlib.suppress(ModelFolderError):
        terms = str(read_spec(folder).provenance.get("license", ""))
    with contextlib.suppress(ModelFolderError):
        if results := read_evaluation(folder)["results"]:
            measured = f"{len(results)} results"
    return Listing(name, "cache", str(folder), terms, measured)


def _published() -> Iterator[Listing]:
    from huggingface_hub import HfApi

    api = HfApi()
    with plain_errors(f"models tagged {TAG}"):
        for model in patiently(lambda: list(api.list_models(filter=TAG))):
            tags = [tag for tag in model.tags or () if tag.startswith("license:")]
            url = f"{api.endpoint}/{model.id}"
            yield Listing(model.id, "Hub", url, "".join(tags).removeprefix("license:"))
