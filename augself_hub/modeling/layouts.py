"""Where the encoder lies in the checkpoints of other projects, and under which names.

A checkpoint of self-supervised training holds more than an encoder: heads, a second encoder that
follows the first, queues, an optimizer. `resnet_of` finds the ResNet in it and says what it leaves
out; docs/convert.md has a table of the layouts, each tried by a test.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from augself_hub.errors import CheckpointError
from augself_hub.modeling.checkpoint import State, state_of

# Where a state dict is kept: AugSelf's backbone, the teacher that DINO publishes, then the usual.
PLACES = ("backbone", "teacher", "student", "state_dict", "model", "model_state_dict", "network")
# The encoder that follows the trained one: MoCo's keys, BYOL's target, moving averages.
_FOLLOWER = re.compile(r"(^|[._])(momentum|target|teacher|ema|encoder_k|k)([._]|$)|^ema_")
# nn.Sequential(*resnet.children()), as lightly's examples build their backbones
_NUMBERED = {"0": "conv1", "1": "bn1", **{str(i + 3): f"layer{i}" for i in range(1, 5)}}
_NOT_ENCODER = re.compile(
    r"(fc|head|heads|projection_head|projector|prototypes|predictor|classifier)\d*\."
)

log = logging.getLogger(__name__)


def resnet_of(content: dict[str, Any], path: Path, taken: Collection[str] = ()) -> State:
    """A checkpoint's ResNet, by torchvision's names, without its classifier.

    Args:
        content: of the file, as `read_checkpoint` gives it.
        path: the file, for messages and as the bound of what its tensors may claim.
        taken: its other parts that are taken as well.

    Raises:
        CheckpointError: no ResNet in it, or several of which none is clearly the trained one.
    """
    place = next((p for p in PLACES if isinstance(content.get(p), dict | list)), None)
    state = state_of(content if place is None else content[place], path)
    try:
        prefix, numbered = _chosen(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be converted: {error}") from None
    inside = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    if numbered:
        parts = ((name.partition("."), value) for name, value in inside.items())
        inside = {_NUMBERED.get(n, n) + dot + rest: value for (n, dot, rest), value in parts}
    encoder = {name: value for name, value in inside.items() if not _NOT_ENCODER.match(name)}
    out = {n.split(".")[0] for n in state if not n.startswith(prefix)}
    out |= {name.split(".")[0] for name in inside if _NOT_ENCODER.match(name)}
    out |= {str(key) for key in content if place is not None and key not in (place, *taken)}
    if out or prefix or place:
        whose = ".".join(part for part in (place, prefix.rstrip(".")) if part)
        log.info("%s: the encoder is %s; left out: %s", path, whose or "the file",
                 ", ".join(sorted(out)) or "nothing")  # fmt: skip
    return encoder


def _chosen(state: State) -> tuple[str, bool]:
    """(what stands before every name of the ResNet to take, whether its parts are numbered)."""
    found = {n.removesuffix("layer1.0.conv1.weight"): False for n in state
             if n.endswith("layer1.0.conv1.weight")}  # fmt: skip
    found |= {n.removesuffix("4.0.conv1.weight"): True for n in state
              if re.search(r"(^|\.)4\.0\.conv1\.weight$", n)
              and n.removesuffix("4.0.conv1.weight") + "0.weight" in state}  # fmt: skip
    trained = [prefix for prefix in found if not _FOLLOWER.search(prefix.rstrip("."))]
    if len(found) > 1 and len(trained) != 1:
        raise CheckpointError(
            f"it holds {len(found)} ResNets ({', '.join(sorted(found))}): keep one of them"
        )
    if not found:
        first = min(state, default="nothing")
        kind = " (a ViT)" if any("attn" in name or "cls_token" in name for name in state) else ""
        raise CheckpointError(
            f"it has no convolution layer1.0.conv1.weight, only {first} ...: it is no ResNet of "
            f"torchvision's kind{kind}"
        )
    prefix = trained[0] if trained else next(iter(found))
    return prefix, found[prefix]
