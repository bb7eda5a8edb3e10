"""What commands of this part share: how a model is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from augself_hub.options import Option
from augself_hub.precision import PRECISIONS

DEVICES = "auto|cpu|openvino|cuda|tensorrt"


def running(option: Callable[..., Any]) -> list[Option[Any]]:
    """--device, --precision and --decode, made by `click.option` or by `grouped`."""
    return [
        option(
            "--device",
            metavar=DEVICES,
            default="auto",
            show_default=True,
            help="One asked for by name is had or refused; auto says what it took.",
        ),
        option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="fp32",
            show_default=True,
            help="bf16 is OpenVINO's; int8 (CPUs) and fp16 (GPUs) are made by augself export "
            "--quantize.",
        ),
        option(
            "--decode",
            metavar="exact|fast",
            default="exact",
            show_default=True,
            help="fast decodes large JPEGs smaller: quicker, and features differ a little.",
        ),
    ]
