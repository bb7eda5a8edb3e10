"""AugSelf Hub: augmentation-aware image features.

Every public name comes from here, loaded when it is first used, so that importing the package
imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from augself_hub.lazy import load

__version__ = "0.2.0.dev0"

# Nothing is sent that nobody asked for. Each library reads its switch when it is imported, and none
# is imported before this package; who wants their reports sets the variable otherwise.
_NO_TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, see runtime.py
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and transformers and datasets through it
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets counts local loading scripts on the Hub
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",  # whoever else reads it
}
for _switch, _off in _NO_TELEMETRY.items():
    os.environ.setdefault(_switch, _off)

if TYPE_CHECKING:
    from augself_hub.answer import Difference
    from augself_hub.augmentations.spec import Policy
    from augself_hub.features import DifferenceTable, FeatureTable
    from augself_hub.hub import pull
    from augself_hub.modeling.api import export
    from augself_hub.modeling.convert import convert
    from augself_hub.modeling.model import AugSelfModel, AugSelfOutput
    from augself_hub.modeling.objective import AugSelfLoss
    from augself_hub.modeling.views import TwoViews
    from augself_hub.pushing import push
    from serving.client import AsyncClient, Client
    from serving.encoder import Encoder
    from serving.extraction.api import extract
    from training.api import fit_heads, fit_matcher, fit_uncertainty, pretrain
    from training.evaluation.api import evaluate

_EXPORTS = {
    "AugSelfModel": "augself_hub.modeling.model",
    "AugSelfOutput": "augself_hub.modeling.model",
    "AugSelfLoss": "augself_hub.modeling.objective",
    "Policy": "augself_hub.augmentations.spec",
    "TwoViews": "augself_hub.modeling.views",
    "FeatureTable": "augself_hub.features",
    "DifferenceTable": "augself_hub.features",
    "Encoder": "serving.encoder",
    "Difference": "augself_hub.answer",
    "Client": "serving.client",
    "AsyncClient": "serving.client",
    "extract": "serving.extraction.api",
    "pretrain": "training.api",
    "fit_heads": "training.api",
    "fit_matcher": "training.api",
    "fit_uncertainty": "training.api",
    "evaluate": "training.evaluation.api",
    "convert": "augself_hub.modeling.convert",
    "export": "augself_hub.modeling.api",
    "push": "augself_hub.pushing",
    "pull": "augself_hub.hub",
}
_EXTRAS = {  # the others come with `model`
    "Encoder": "serve",
    "Difference": "serve",
    "Client": "serve",
    "AsyncClient": "serve",
    "extract": "serve",
    "pretrain": "train",
    "fit_heads": "train",
    "fit_matcher": "train",
    "fit_uncertainty": "train",
    "evaluate": "train,extract",
    "export": "export",
}
__all__ = [
    "AsyncClient",
    "AugSelfLoss",
    "AugSelfModel",
    "AugSelfOutput",
    "Client",
    "Difference",
    "DifferenceTable",
    "Encoder",
    "FeatureTable",
    "Policy",
    "TwoViews",
    "__version__",
    "convert",
    "evaluate",
    "export",
    "extract",
    "fit_heads",
    "fit_matcher",
    "fit_uncertainty",
    "pretrain",
    "pull",
    "push",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'augself_hub' has no attribute {name!r}")
    return load(_EXPORTS[name], name, _EXTRAS.get(name, "model"))
