"""The paper's own figures (AugSelf, arXiv:2111.09613), to print beside ours, never as ours.

ResNet-50 pretrained on ImageNet-100; (without, with AugSelf), in percent.
"""

from __future__ import annotations

LABEL = "the paper's, ResNet-50 on ImageNet-100"
_SETS = (
    *("cifar10", "cifar100", "food101", "mit67", "pets", "flowers", "caltech101"),
    *("cars", "aircraft", "dtd", "sun397"),
)
_Pairs = dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
_LINEAR: _Pairs = {
    "SimSiam": (
        (86.89, 66.33, 61.48, 65.75, 74.69, 88.06, 84.13, 48.20, 48.63, 65.11, 50.60),
        (88.80, 70.27, 65.63, 67.76, 76.34, 90.70, 85.30, 47.52, 49.76, 67.29, 52.28),
    ),
    "MoCo v2": (
        (84.60, 61.60, 59.67, 61.64, 70.08, 82.43, 77.25, 33.86, 41.21, 64.47, 46.50),
        (85.26, 63.90, 60.78, 63.36, 73.46, 85.70, 78.93, 37.35, 39.47, 66.22, 48.52),
    ),
}
_FEW = tuple((name, shots) for name in ("fc100", "cub200", "plant_disease") for shots in (1, 5))
_FEW_SHOT: _Pairs = {
    "SimSiam": (
        (36.19, 50.36, 45.56, 62.48, 75.72, 89.94),
        (39.37, 55.27, 48.08, 66.27, 77.93, 91.52),
    ),
    "MoCo v2": (
        (31.67, 43.88, 41.67, 56.92, 65.73, 84.98),
        (35.02, 48.77, 44.17, 57.35, 71.80, 87.81),
    ),
}


PUBLISHED: dict[tuple[str, str, int], dict[str, tuple[float, float]]] = {
    **{
        ("linear probe", name, 0): {
            method: (without[i], with_[i]) for method, (without, with_) in _LINEAR.items()
        }
        for i, name in enumerate(_SETS)
    },
    **{
        ("few-shot", name, shots): {
            method: (without[i], with_[i]) for method, (without, with_) in _FEW_SHOT.items()
        }
        for i, (name, shots) in enumerate(_FEW)
    },
}
"""(task, data set, shots or 0) -> method -> (without, with)."""
