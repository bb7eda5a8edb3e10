"""A model that a server can load: where it lies, how it is run, and what it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from augself_hub import hub
from augself_hub.augmentations.spec import Spec
from augself_hub.errors import AugSelfError
from augself_hub.folder import read_spec, verify
from augself_hub.preprocess import Preprocessing
from serving.inference.engine import Engine, graphs_of
from serving.inference.providers import Graph


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded, any number of times: where it lies and how it is run.

    Args:
        name: what requests call it.
        folder: a verified model folder.
        device, threads, precision, decode: see `Engine`.
    """

    name: str
    folder: Path
    device: str = "auto"
    threads: int | None = None
    precision: str = "fp32"
    decode: str = "exact"

    @classmethod
    def find(
        cls,
        model: str | None,
        device: str,
        threads: int | None,
        precision: str,
        decode: str,
        name: str | None = None,
    ) -> ModelSource:
        """A folder, a Hub id or None, the embedded model.

        Args:
            name: what requests call it; None: see `hub.name_of`.

        Raises:
            ModelFolderError: it is not there, or has no graph of this precision.
        """
        folder = hub.resolve(model)
        return cls(name or hub.name_of(model), folder, device, threads, precision, decode)

    def __post_init__(self) -> None:
        """Described at the start: later the folder may be another's."""
        _ = self.spec, self.preprocessing, self.graphs

    def load(self) -> Engine:
        """Raises AugSelfError where the folder is no longer what it was at the start."""
        found = graphs_of(verify(self.folder), self.precision), read_spec(self.folder)
        if found != (self.graphs, self.spec):
            raise AugSelfError(f"{self.folder} has changed: start the server again")
        return Engine(
            self.folder,
            self.device,
            self.threads,
            self.name,
            self.precision,
            self.decode,
            in_lanes=True,
        )

    @cached_property
    def spec(self) -> Spec:
        return read_spec(self.folder)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        return replace(Preprocessing.from_folder(self.folder), decode=self.decode)

    @cached_property
    def graphs(self) -> list[Graph]:
        return graphs_of(self.folder, self.precision)

    @property
    def sha256(self) -> str:
        """Of the encoder's graph."""
        return self.graphs[0].sha256

    @cached_property
    def graph_bytes(self) -> int:
        """Of its graphs on disk: in memory it takes more."""
        return sum(graph.path.stat().st_size for graph in self.graphs)
