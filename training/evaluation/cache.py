"""Feature tables, each extracted once.

A table is kept under (sha256 of the model's graph, fingerprint of the images, preprocessing), so a
second evaluation computes no feature again. serving.extraction makes them, as `augself extract`
does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from augself_hub import hub
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError, MissingExtra, ModelFolderError
from augself_hub.features import MANIFEST, FeatureTable
from augself_hub.folder import read_manifest as read_model
from augself_hub.folder import read_spec
from augself_hub.precision import graph_of
from augself_hub.preprocess import Preprocessing
from training.evaluation.listing import LabelledImages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """One model under evaluation.

    Args:
        name: as it was given; None: the embedded one.
        folder: where its files are. sha256: of its encoder's graph.
    """

    name: str | None
    folder: Path
    sha256: str
    spec: Spec
    preprocessing: Preprocessing

    @classmethod
    def resolve(cls, name: str | None) -> Model:
        """A folder, a Hub id or None, the embedded model.

        Raises:
            ModelFolderError: it is not there, or has no graph to extract features with.
        """
        folder = hub.resolve(name)
        files = read_model(folder)["files"]
        spec = read_spec(folder)
        graph = graph_of(folder).as_posix()
        if graph not in files:
            raise ModelFolderError(
                f"{folder} has no {graph}, which features are extracted with: "
                f"augself export --model {folder}"
            )
        return cls(name, folder, files[graph], spec, Preprocessing.from_folder(folder))

    @property
    def title(self) -> str:
        """A Hub id as it is; a folder's last name, or its last two where that is `model`."""
        if self.name is None:
            return "embedded"
        if not Path(self.name).is_dir():
            return self.name
        *_, above, last = ("", *Path(self.name).resolve().parts)
        return f"{above}/{last}" if last == "model" else last


class Tables:
    """The feature tables of one model.

    Args:
        cache: the folder they are kept in. device: what extraction is to run on.
    """

    def __init__(self, model: Model, cache: Path, device: str = "auto") -> None:
        self.model, self.cache, self.device = model, cache, device

    def of(self, images: LabelledImages) -> FeatureTable:
        """The features of these images, in their order.

        Raises:
            AugSelfError: an image cannot be read, or the table is another model's.
        """
        settings = json.dumps(dataclasses.asdict(self.model.preprocessing))
        key = f"{self.model.sha256} {images.fingerprint()} {settings}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        place = self.cache / (re.sub(r"[^\w.-]+", "-", images.name)[:40] + f"-{digest}")
        if not (place / MANIFEST).is_file():
            log.info("extracting %d images of %s", len(images), images.name)
            try:
                from serving.extraction.pipeline import extract_with
            except ModuleNotFoundError as error:
                raise MissingExtra(error.name or "onnxruntime", "serve") from error
            place.parent.mkdir(parents=True, exist_ok=True)
            extract_with(str(self.model.folder), self.device, images.source(), place)
        table = FeatureTable.read(place)
        if table.errors:  # the protocol counts every image: one less would shift the result
            name, reason = table.errors[0]
            raise AugSelfError(
                f"{len(table.errors)} of {len(images)} images of {images.name} cannot be read, the "
                f"first is {name} ({reason}): mend or remove it"
            )
        refuse_other_model(table, self.model)
        return table


def refuse_other_model(table: FeatureTable, model: Model) -> None:
    """Features of one model say nothing about another.

    Raises:
        AugSelfError: the table comes from another model.
    """
    if table.model != model.sha256:
        raise AugSelfError(
            f"the table is of model {table.model[:12]} and not of {model.title} "
            f"({model.sha256[:12]}): remove it from the cache and evaluate again"
        )
