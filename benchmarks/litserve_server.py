"""LitServe with the same graph and Pillow decoding, for benchmarks/server.py."""

from __future__ import annotations

import argparse
from typing import Any

import litserve
import numpy as np

from augself_hub.cores import usable_cores
from augself_hub.preprocess import decode, preprocess

SIDE = 224


class Embeddings(litserve.LitAPI):
    """A form with one image -> its features."""

    def __init__(self, graph: str, threads: int, **options: Any) -> None:
        super().__init__(api_path="/v1/embeddings", **options)
        self.graph, self.threads = graph, threads

    def setup(self, device: str) -> None:
        from augself_hub.runtime import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = onnxruntime.InferenceSession(self.graph, options, ["CPUExecutionProvider"])

    def decode_request(self, request) -> np.ndarray:  # unannotated: LitServe would read it
        return preprocess(decode(request["image"].file.read()), SIDE)

    def batch(self, images: list[np.ndarray]) -> np.ndarray:
        return np.stack(images)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(N, S, S, 3) of a batch, or one image (S, S, 3)."""
        single = images.ndim == 3
        features = self.session.run(None, {"images": images[None] if single else images})[0]
        return features[0] if single else features

    def unbatch(self, features: np.ndarray) -> list[np.ndarray]:
        return list(features)

    def encode_response(self, features: np.ndarray) -> dict[str, Any]:
        embedding = {"object": "embedding", "index": 0, "embedding": features.tolist()}
        return {"object": "list", "model": "resnet18", "data": [embedding]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    waiting = 0.005 if given.batch > 1 else 0.0
    api = Embeddings(
        given.graph,
        max(1, usable_cores() // given.workers),
        max_batch_size=given.batch,
        batch_timeout=waiting,
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=given.workers)
    server.run("127.0.0.1", given.port, generate_client_file=False, log_level="warning")
