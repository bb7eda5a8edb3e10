"""An untrained model folder with its graphs: speed does not depend on the weights."""

from __future__ import annotations

from pathlib import Path


def write_untrained(encoder: str, side: int, folder: Path) -> None:
    """Write one of a named encoder at `side` pixels, with heads for crop and color. Loads torch."""
    import torch

    from augself_hub import AugSelfLoss, AugSelfModel, Policy
    from augself_hub.modeling.encoders import build_encoder, preprocessing_of
    from augself_hub.modeling.export import export_folder

    torch.manual_seed(0)
    built = build_encoder(encoder, side)
    loss = AugSelfLoss(built.dim, {"crop": 1, "color": 1}, Policy(size=side))
    model = AugSelfModel(built.network, loss.heads, loss.spec, preprocessing_of(encoder, side))
    model.save_pretrained(folder)
    export_folder(folder)
