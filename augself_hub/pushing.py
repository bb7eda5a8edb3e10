"""Publish a model folder on the Hub, in one commit.

reserve   the repository is there, and is ours to change
plan      folder and repository -> which files are uploaded, deleted, left as they are
push      reserve, plan, commit
"""

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
    own_folder,
    read_manifest,
    verify,
)
from augself_hub.hub_calls import patiently, plain_errors
from augself_hub.paths import path_text

README = CARD.as_posix()
RESULTS = {path.as_posix() for path in (EVALUATION, TRAINING_LOG, CURVES)}

log = logging.getLogger(__name__)


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

    folder = verify(own_folder(path_text("folder", folder), "push"))
    repository = reserve(repo_id, private=private, token=token)
    planned = _plan(folder, repository, token)
    for path in planned.deletes:
        log.info("deleting %s, of an earlier push", path)
    for path in planned.keeps:
        log.info("keeping %s as it is on the Hub: it is its owner's", path)
    with plain_errors(repo_id):
        # With its parent named, a commit that is sent again because its answer was lost cannot
        # be made twice, nor can it undo somebody else's.
        commit = patiently(
            HfApi(token=token).create_commit,
            repository.id,
            [
                *(CommitOperationAdd(path, value) for path, value in planned.uploads.items()),
                *map(CommitOperationDelete, planned.deletes),
            ],
            commit_message=commit_message or "Upload AugSelf model",
            parent_commit=repository.sha,
        )
    return str(commit.commit_url)


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

    folder = verify(own_folder(path_text("folder", folder), "push"))
    with plain_errors(repo_id):
        try:
            repository = patiently(HfApi(token=token).model_info, repo_id)
        except RepositoryNotFoundError:
            repository = ModelInfo(id=repo_id, siblings=[])
        _refuse_foreign(repository, repo_id, private=None)
    return _plan(folder, repository, token)


def reserve(repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> Any:
    """Make sure that `push` may publish as `repo_id`, which is created if it is not there.

    Returns:
        What the Hub says of the repository, a huggingface_hub.ModelInfo.

    Raises:
        HubError: the name or the token will not do, or the repository holds something else.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with plain_errors(repo_id):
        name = patiently(api.create_repo, repo_id, private=private, exist_ok=True).repo_id
        repository = patiently(api.model_info, name)
        _refuse_foreign(repository, name, private)
    return repository


def _refuse_foreign(repository: Any, name: str, private: bool | None) -> None:
    """Refuse to publish what was meant to be private, and to replace what is no model of ours."""
    if private is not None and repository.private != private:
        kind = "private" if repository.private else "public"
        raise HubError(f"{name} exists and is {kind}: change that in its settings first")
    files = {path for path in _files_of(repository) if computes(path)}
    if files and MANIFEST.as_posix() not in files:
        raise HubError(f"{name} holds something else ({min(files)}): choose another name")


def _files_of(repository: Any) -> set[str]:
    """Its files, but for those of git and the Hub (.gitattributes)."""
    return {s.rfilename for s in repository.siblings or () if not s.rfilename.startswith(".")}


def _plan(folder: Path, repository: Any, token: str | bool | None) -> Plan:
    """Three kinds of files: what is the model's is replaced, the card is whose it is, the rest of
    the repository is its owner's, who may have changed what once came from a folder."""
    from augself_hub import card

    there, manifest = _files_of(repository), read_manifest(folder)
    uploads: dict[str, Path | bytes] = {
        path: folder / path
        for path in files_of(folder)
        if _is_of_the_model(path) or path not in there
    }
    if _card_is_edited_on_the_hub(repository, token):
        uploads.pop(README, None)
    elif card_is_edited(folder):
        uploads[README] = folder / CARD
        published = file_sha256(folder / CARD)
        manifest["card"] = {"generated": generated_card(manifest), "published": published}
    else:
        uploads[README] = text = card.render(folder, repository.id).encode()
        published = hashlib.sha256(text).hexdigest()
        manifest["card"] = {"generated": published, "published": published}
    uploads[MANIFEST.as_posix()] = (json.dumps(manifest, indent=2) + "\n").encode()
    left = there - set(uploads)
    deletes = {path for path in left if _is_of_the_model(path)}
    return Plan(uploads, sorted(deletes), sorted(left - deletes))


def _is_of_the_model(path: str) -> bool:
    """Weights, graphs, configurations and results."""
    return computes(path) or path in RESULTS


def _card_is_edited_on_the_hub(repository: Any, token: str | bool | None) -> bool:
    """Whether the repository's card is other than the one an earlier push left there."""
    from huggingface_hub import hf_hub_download

    there = _files_of(repository)
    if README not in there:
        return False
    if MANIFEST.as_posix() not in there:
        return True
    with plain_errors(repository.id):
        readme, manifest = (
            Path(patiently(hf_hub_download, repository.id, name, revision=repository.sha,
                           token=token))
            for name in (README, MANIFEST.as_posix())
        )  # fmt: skip
    before = read_json(manifest)
    noted, files = before.get("card"), before.get("files")
    published = noted.get("published") if isinstance(noted, dict) else None
    if published is None and isinstance(files, dict):  # by 0.1
        published = files.get(README)
    return file_sha256(readme) != published
