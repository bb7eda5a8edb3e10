"""Publish a model folder on the Hub, in one commit."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augself_hub.configs import computes, read_json
from augself_hub.errors import HubError
from augself_hub.folder import (
    CARD,
    CURVES,
    EVALUATION,
    MANIFEST,
    TRAINING_LOG,
    card_is_edited,
    file_sha256,
    files_of,
    generated_card,
    read_manifest,
    verify,
)
from augself_hub.hub_calls import patiently, plain_errors
from augself_hub.paths import path_text

log = logging.getLogger(__name__)


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
    with plain_errors(repo_id):
        # With its parent named, a commit that is sent again because its answer was lost cannot
        # be made twice, nor can it undo somebody else's.
        commit = patiently(
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
    with plain_errors(repo_id):
        name = patiently(api.create_repo, repo_id, private=private, exist_ok=True).repo_id
        there = patiently(api.model_info, name)
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
    with plain_errors(repo_id):
        try:
            there = patiently(HfApi(token=token).model_info, repo_id)
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
    with plain_errors(there.id):
        readme, manifest = (
            Path(patiently(hf_hub_download, there.id, name, revision=there.sha, token=token))
            for name in (CARD.as_posix(), MANIFEST.as_posix())
        )
    before = read_json(manifest)
    noted = before.get("card")
    files = before.get("files")
    published = noted.get("published") if isinstance(noted, dict) else None
    if published is None and isinstance(files, dict):  # by 0.1
        published = files.get(CARD.as_posix())
    return file_sha256(readme) != published
