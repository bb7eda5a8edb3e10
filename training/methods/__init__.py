"""The methods AugSelf is added to: one file and one screen each, beside the paper's algorithm."""

from training.methods.byol import BYOL
from training.methods.method import Method, MethodOutput
from training.methods.moco import MoCo
from training.methods.options import checked_options, options_of
from training.methods.simclr import SimCLR
from training.methods.simsiam import SimSiam
from training.methods.supervised import Supervised
from training.methods.swav import SwAV

METHODS: dict[str, type[Method]] = {
    "simsiam": SimSiam,
    "moco": MoCo,
    "simclr": SimCLR,
    "byol": BYOL,
    "swav": SwAV,
    "supervised": Supervised,
}

__all__ = ["METHODS", "Method", "MethodOutput", "checked_options", "options_of"]
