"""Run alone: PHOTO FOLDER... -> one line of JSON, what transformers makes of each folder.

This project cannot be imported here: the folders must need nothing of it (contract C1).
"""

import importlib.util
import json
import sys

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

for project in ("augself_hub", "training", "serving"):
    sys.modules[project] = None

BACKENDS = ("torchvision", "pil")


def keys(architecture, folder):
    """Names of weights that were missing and of those that had no place."""
    _, info = architecture.from_pretrained(folder, output_loading_info=True)
    return {"missing": list(info["missing_keys"]), "unexpected": list(info["unexpected_keys"])}


def backbone(folder):
    name = type(AutoModel.from_pretrained(folder)).__name__.replace("Model", "Backbone")
    architecture = getattr(transformers, name, None)
    return architecture and keys(architecture, folder)


@torch.no_grad()
def features(folder, image, backend):
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    output = AutoModel.from_pretrained(folder).eval()(**processor(image, return_tensors="pt"))
    return output.pooler_output.flatten(1)[0].tolist()


def pipelined(folder, image):
    pipe = pipeline("image-feature-extraction", model=folder, pool=True, device="cpu")
    return np.asarray(pipe(image)).reshape(-1).tolist()


def sentence_transformer(folder, image):
    """None where it is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(folder, device="cpu").encode(image)).tolist()


def report(folder, image):
    return {
        "AutoModel": keys(AutoModel, folder),
        "AutoModelForImageClassification": keys(AutoModelForImageClassification, folder),
        "Backbone": backbone(folder),
        **{backend: features(folder, image, backend) for backend in BACKENDS},
        "pipeline": pipelined(folder, image),
        "SentenceTransformer": sentence_transformer(folder, image),
    }


photo, *folders = sys.argv[1:]
print(json.dumps({f: report(f, Image.open(photo).convert("RGB")) for f in folders}))
