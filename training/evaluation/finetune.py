"""Finetuning: the whole network with a linear classifier, by a standard schedule.

SGD with momentum 0.9, learning rate 0.01 for 64 images a step, cosine to 0, weight decay 1e-4,
random resized crops (at least 0.2 of the area) and mirroring; trained on training and validation
images, tested once. Nothing is tuned, so the numbers compare models and are no records.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, set_seed

from augself_hub.augmentations.functional import normalise
from augself_hub.modeling.encoders import Encoder
from augself_hub.modeling.model import AugSelfModel
from augself_hub.preprocess import Preprocessing, preprocess
from training.evaluation.cache import Model
from training.evaluation.examples import METRICS, classes_of, majority_class
from training.evaluation.listing import TEST, TRAIN, VALIDATION, LabelledImages
from training.evaluation.results import Result
from training.evaluation.tasks import METRIC_NAMES, Subject, TaskSettings
from training.run.arguments import on_one_gpu

BATCH, RATE, DECAY = 64, 0.01, 1e-4


class Classifier(nn.Module):
    """An encoder with a newly initialised linear layer."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.layer = nn.Linear(encoder.dim, classes)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(N, 3, S, S), (N,) -> {"loss", "logits" (N, C)}."""
        logits = self.layer(self.encoder(pixel_values))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class _Pictures(Dataset[dict[str, Any]]):
    """Normalised images and labels; augmented for training, the middle square for the test."""

    def __init__(
        self,
        images: LabelledImages,
        rows: np.ndarray,
        labels: Sequence[int],
        preprocessing: Preprocessing,
        training: bool,
    ) -> None:
        self.images, self.rows, self.labels = images, rows, labels
        self.preprocessing = preprocessing
        size = preprocessing.size
        crop = v2.RandomResizedCrop(size, (0.2, 1.0), antialias=True)
        augmented = v2.Compose([crop, v2.RandomHorizontalFlip(), np.asarray])
        self.prepare = augmented if training else lambda image: preprocess(image, size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.prepare(self.images.image(int(self.rows[index])))
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return {"pixel_values": normalise(x, mean, std)[0], "labels": int(self.labels[index])}


def finetune(
    subject: Subject, model: Model, settings: TaskSettings, device: str = "auto"
) -> list[Result]:
    """Train all weights on one data set, and test them.

    Args:
        device: as extraction takes it: on those of CPUs, and where there is no GPU, on the CPU.

    Raises:
        AugSelfError: one class only, or a class of the test that training lacks.
    """
    train, test = subject.examples(TRAIN, VALIDATION), subject.examples(TEST)
    classes = classes_of(train, test)
    set_seed(settings.seed)
    loaded = AugSelfModel.from_pretrained(model.folder)
    network = Classifier(Encoder(loaded.encoder, model.preprocessing.size), len(classes)).train()
    pictures = [
        _Pictures(
            subject.images,
            subject.images.rows(*splits),
            np.searchsorted(classes, examples.labels).tolist(),
            model.preprocessing,
            training,
        )
        for splits, examples, training in (
            ((TRAIN, VALIDATION), train, True),
            ((TEST,), test, False),
        )
    ]
    sgd = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=DECAY)
    on_cpu = device in ("cpu", "openvino") or not torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            # Of a last batch of one image BN may have no variance.
            dataloader_drop_last=len(train) > BATCH and len(train) % BATCH == 1,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            max_grad_norm=0.0,
            seed=settings.seed,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            label_names=["labels"],
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        on_one_gpu(arguments)
        trainer = Trainer(network, arguments, train_dataset=pictures[0], optimizers=(sgd, None))
        trainer.train()
        arguments.dataloader_drop_last = False  # of the test every image counts
        answers = trainer.predict(pictures[1]).predictions
        predicted = classes[np.asarray(answers).argmax(axis=1)]
    result = Result(
        task="fine-tuning",
        dataset=subject.name,
        name=f"{subject.name}, {subject.metric}",
        metric=METRIC_NAMES[subject.metric],
        value=METRICS[subject.metric](test.labels, predicted),
        baseline=majority_class(test.labels, subject.metric),
        protocol=f"All weights trained for {settings.epochs} epochs on training and validation "
        f"images (SGD, {RATE:g} for {BATCH} images a step, cosine), tested once; nothing tuned.",
        details={"epochs": settings.epochs, "images": {"test": len(test)}},
        scores=100.0 * (predicted == test.labels),
        groups=test.labels if subject.metric == "mean per class" else None,
    )
    return [result]
