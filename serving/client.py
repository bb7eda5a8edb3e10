"""How code in the server's own process asks a model: the demo, app.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from serving.engine import Engine

Features = Callable[[Sequence[np.ndarray]], np.ndarray]


class Local:
    """One model, asked by plain blocking calls from any thread.

    Args:
        engine: the model; `engine.spec` and `engine.preprocessing` describe it.
        features: how features are computed. None asks the engine itself (app.py); the server gives
            its batcher's, so that the demo shares the queue, and its limits, with everybody else.
    """

    def __init__(self, engine: Engine, features: Features | None = None) -> None:
        self.engine = engine
        self._features = features or engine.features

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """N preprocessed images, each (S, S, 3) uint8 -> (N, D) float32.

        Raises:
            AugSelfError: the server is full or is shutting down.
        """
        return self._features(images)

    def differences(self, features_a: np.ndarray, features_b: np.ndarray) -> dict[str, np.ndarray]:
        """Features (N, D) of N pairs -> kind -> (N, outputs) in physical units."""
        return self.engine.differences(features_a, features_b)
