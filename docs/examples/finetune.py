"""Fine-tune a model on a folder of classes, with transformers alone.

    python docs/examples/finetune.py MODEL PHOTOS OUTPUT

MODEL is a model folder or a Hub id. It is a stock checkpoint, so nothing of this project is
imported: the encoder gets a new classifier, and Trainer does the rest. The sub-folders of PHOTOS
are the classes; a fifth of the pictures is kept for the test.
"""

from __future__ import annotations

import sys

import torch
from PIL import Image, ImageOps
from torch.utils.data import random_split
from torchvision.datasets import ImageFolder
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)


def main(model: str, photos: str, output: str) -> None:
    torch.manual_seed(0)
    processor = AutoImageProcessor.from_pretrained(model)
    images = photographs(photos, processor)
    network = AutoModelForImageClassification.from_pretrained(
        model, id2label=dict(enumerate(images.classes)), label2id=images.class_to_idx
    )
    train, test = random_split(images, [0.8, 0.2])
    arguments = TrainingArguments(
        output,
        num_train_epochs=10,
        learning_rate=1e-3,
        per_device_train_batch_size=16,
        save_strategy="no",
        report_to=[],
    )
    trainer = Trainer(network, arguments, collate, train, test, compute_metrics=accuracy)
    trainer.train()
    print(f"{len(test)} test images: {trainer.evaluate()['eval_accuracy']:.1%} right")
    trainer.save_model(output)
    processor.save_pretrained(output)


def photographs(folder: str, processor: BaseImageProcessor) -> ImageFolder:
    """Each as it is shown: a phone stores what its sensor saw, and ImageFolder shows that."""

    def upright(path: str) -> Image.Image:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")

    return ImageFolder(
        folder, lambda image: processor(image, return_tensors="pt").pixel_values, loader=upright
    )


def collate(items: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    pixels, labels = zip(*items, strict=True)
    return {"pixel_values": torch.cat(pixels), "labels": torch.tensor(labels)}


def accuracy(found: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(axis=1) == found.label_ids).mean())}


if __name__ == "__main__":
    main(*sys.argv[1:])
