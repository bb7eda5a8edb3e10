"""Models by name: resolve, pull, push and list them.

A name is a model folder, a Hub id (`org/name` or `org/name@revision`) or None, the embedded
demonstration model. huggingface_hub is imported where it is used: `augself --help` does without.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augself_hub.configs import CONFIGURATIONS, computes, read_json, refuse_code
from augself_hub.errors import HubError, ModelFolderError, UsageError
from augself_hub.folder import (
    CARD,
    CURVES,
    EVALUATION,
    MANIFEST,
    TRAINING_LOG,
    card_is_edited,
    file_sha256,
    files_of,
    finish_exchange,
    generated_card,
    new_folder,
    read_manifest,
    read_spec,
    verify,
)
from augself_hub.paths import path_text
from augself_hub.results import read_evaluation

EMBEDDED = Path(__file__).parent / "pretrained"
TAG = "augself"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_BUSY = (429, 500, 502, 503, 504)
_WAITS = (1.0, 2.0, 4.0)  # seconds before the Hub is asked again while it is busy

log = logging.getLogger(__name__)


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
    with _plain_errors(f"{name}@{revision}" if revision else name):
        wanted = (inside / MANIFEST).as_posix()
        manifest = _patiently(snapshot_download, **where, allow_patterns=[wanted])
        if not (Path(manifest) / wanted).is_file():
            raise HubError(f"{name} is no AugSelf model: the Hub has no {wanted} in it")
        if inside != Path():
            where["allow_patterns"] = [f"{inside.as_posix()}/*"]
        return Path(_patiently(snapshot_download, **where)) / inside


def fetch_encoder(name: str, *, token: str | bool | None = None) -> Path:
    """`org/name` or `org/name@revision` of any stock encoder -> a folder of the files that make it.

    Raises:
        HubError: the Hub did not give it, or has no config.json in it.
    """
    from huggingface_hub import snapshot_download

    name, revision = _with_revision(name, None)
    with _plain_errors(f"{name}@{revision}" if revision else name):
        fetch = functools.partial(
            _patiently, snapshot_download, repo_id=name, revision=revision, token=token
        )
        folder = Path(fetch(allow_patterns=[*CONFIGURATIONS]))
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


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Publish a model folder in ONE commit (see `plan` for what it changes).

    Args:
        repo_id: `org/name`; it is created if it is not there.
        private: of a new repository; None: the owner's default.

    Returns:
        The commit's URL.

    Raises:
        ModelFolderError: the folder disagrees with its manifest.
        HubError: the Hub did not take it, or the repository holds something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    folder = verify(Path(path_text("folder", folder)))
    there = reserve(repo_id, private=private, token=token)
    api, name = HfApi(token=token), there.id
    planned = _plan(folder, there, token)
    for path in planned.deletes:
        log.info("deleting %s, of an earlier push", path)
    for path in planned.keeps:
        log.info("keeping %s as it is on the Hub: it is its owner's", path)
    with _plain_errors(repo_id):
        # With its parent named, a commit that is sent again because its answer was lost cannot
        # be made twice, nor can it undo somebody else's.
        commit = _patiently(
            api.create_commit,
            name,
            [
                *(CommitOperationAdd(path, value) for path, value in planned.uploads.items()),
                *map(CommitOperationDelete, planned.deletes),
            ],
            commit_message=commit_message or "Upload AugSelf model",
            parent_commit=there.sha,
        )
    return str(commit.commit_url)


def reserve(repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> Any:
    """Make sure that `push` may publish as `repo_id`, which is created if it is not there.

    Returns:
        What the Hub says of the repository.

    Raises:
        HubError: the name or the token will not do, or the repository holds something else.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _plain_errors(repo_id):
        name = _patiently(api.create_repo, repo_id, private=private, exist_ok=True).repo_id
        there = _patiently(api.model_info, name)
        _refuse_surprise(name, there, private)
    return there


def _refuse_surprise(name: str, there: Any, private: bool | None) -> None:
    """Refuse to publish what was meant to be private, and to replace what is no model of ours."""
    if private is not None and there.private != private:
        kind = "private" if there.private else "public"
        raise HubError(f"{name} exists and is {kind}: change that in its settings first")
    files = {path for path in _visible(there) if computes(path)}
    if files and MANIFEST.as_posix() not in files:
        raise HubError(f"{name} holds something else ({min(files)}): choose another name")


def _visible(there: Any) -> set[str]:
    """A repository's files, but for those of git and the Hub (.gitattributes)."""
    return {s.rfilename for s in there.siblings or () if not s.rfilename.startswith(".")}


@dataclass(frozen=True)
class Plan:
    """What a push does.

    Args:
        uploads: path -> a local file or its content.
        deletes: weights, graphs, configurations and results of an earlier push that this one has
            not: they would be read as a part of this model.
        keeps: what stays on the Hub as it is, though another file of that name may be here: cards
            that were edited, licences, pictures, whatever their owner added.
    """

    uploads: dict[str, Path | bytes]
    deletes: list[str]
    keeps: list[str]


def plan(folder: str | os.PathLike[str], repo_id: str, *, token: str | bool | None = None) -> Plan:
    """What `push` would do. Nothing is written, here or on the Hub.

    The card is generated with the repository's name in its examples, unless it was edited: on the
    Hub, then it stays; in the folder, then it is uploaded as it is.

    Raises:
        ModelFolderError: the folder disagrees with its manifest.
        HubError: the Hub cannot be asked, or the repository holds something else.
    """
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.errors import RepositoryNotFoundError

    folder = verify(Path(path_text("folder", folder)))
    with _plain_errors(repo_id):
        try:
            there = _patiently(HfApi(token=token).model_info, repo_id)
        except RepositoryNotFoundError:
            there = ModelInfo(id=repo_id, siblings=[])
        _refuse_surprise(repo_id, there, None)
    return _plan(folder, there, token)


def _plan(folder: Path, there: Any, token: str | bool | None) -> Plan:
    from augself_hub import card

    here, visible, manifest = files_of(folder), _visible(there), read_manifest(folder)
    ours = {path.as_posix() for path in (EVALUATION, TRAINING_LOG, CURVES)}
    mine = [path for path in here if computes(path) or path in ours or path not in visible]
    uploads: dict[str, Path | bytes] = {path: folder / path for path in mine}
    readme = CARD.as_posix()
    if _card_on_the_hub_is_edited(there, visible, token):
        uploads.pop(readme, None)
    elif card_is_edited(folder):
        uploads[readme] = folder / CARD
    else:
        uploads[readme] = text = card.render(folder, there.id).encode()
        manifest["card"] = {"generated": hashlib.sha256(text).hexdigest()}
    if content := uploads.get(readme):
        data = content if isinstance(content, bytes) else content.read_bytes()
        published = hashlib.sha256(data).hexdigest()
        manifest["card"] = {"generated": generated_card(manifest), "published": published}
    uploads[MANIFEST.as_posix()] = (json.dumps(manifest, indent=2) + "\n").encode()
    deletes = {path for path in visible - set(uploads) if computes(path) or path in ours}
    return Plan(uploads, sorted(deletes), sorted(visible - set(uploads) - deletes))


def _card_on_the_hub_is_edited(there: Any, visible: set[str], token: str | bool | None) -> bool:
    """Whether the repository's card is other than the one an earlier push left there."""
    from huggingface_hub import hf_hub_download

    if CARD.as_posix() not in visible:
        return False
    if MANIFEST.as_posix() not in visible:
        return True
    with _plain_errors(there.id):
        readme, manifest = (
            Path(_patiently(hf_hub_download, there.id, name, revision=there.sha, token=token))
            for name in (CARD.as_posix(), MANIFEST.as_posix())
        )
    before = read_json(manifest)
    noted = before.get("card")
    files = before.get("files")
    published = noted.get("published") if isinstance(noted, dict) else None
    if published is None and isinstance(files, dict):  # by 0.1
        published = files.get(CARD.as_posix())
    return file_sha256(readme) != published


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
    with _plain_errors(f"models tagged {TAG}"):
        for model in _patiently(lambda: list(api.list_models(filter=TAG))):
            tags = [tag for tag in model.tags or () if tag.startswith("license:")]
            url = f"{api.endpoint}/{model.id}"
            yield Listing(model.id, "Hub", url, "".join(tags).removeprefix("license:"))


def _patiently(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the Hub, and again after a while if it is busy."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for wait in _WAITS:
        try:
            return call(*arguments, **options)
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            if _status(error) not in _BUSY:
                raise
            log.info("the Hub is busy (%s): asking again in %g s", _status(error), wait)
            time.sleep(wait)
    return call(*arguments, **options)


@contextlib.contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """What goes wrong with the Hub becomes one line that names the mend."""
    from huggingface_hub import errors

    # Of whichever HTTP library it uses.
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (http_error, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubError(_advice(name, error)) from error
    except ValueError as error:  # a name or a card the Hub does not accept
        raise HubError(f"{name}: {' '.join(str(error).split())}") from error


def _advice(name: str, error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    status = _status(error)
    if status in _BUSY:
        return f"{name}: the Hub is busy ({status}): try again later"
    if status is not None:
        return _ADVICE.get(status, "{}: the Hub answered {}").format(name, status)
    if isinstance(error.__cause__ or error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return f"{name}: not in the cache, and the Hub may not be asked (HF_HUB_OFFLINE)"
    return f"{name}: the Hub cannot be reached: check the connection and HF_ENDPOINT"


_ADVICE = {
    401: "{}: the Hub does not know it or does not know you ({}): check the name, or log in with "
    "`hf auth login`",
    403: "{}: your token has no right to this ({}): use one with write access, or ask the owner",
    404: "{}: the Hub has no such model or revision ({}): check the name",
    409: "{}: somebody changed it at the same time ({}): try again",
    412: "{}: somebody changed it at the same time ({}): try again",
}


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error, if there is one."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return None if response is None else int(response.status_code)
