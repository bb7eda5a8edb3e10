"""What commands of this part share: how a model is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from augself_hub.options import Option
from augself_hub.precision import PRECISIONS


def running(option: Callable[..., Any]) -> list[Option]:
    """--device, --precision and --decode, made by `click.option` or by `grouped`."""
    return [
        option(
            "--device",
            metavar="auto|cpu|cuda|tensorrt",
            default="auto",
            show_default=True,
            help="cuda and tensorrt are refused where they cannot be had; auto says what it took.",
        ),
        option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="fp32",
            show_default=True,
            help="int8 (CPUs) and fp16 (GPUs) are made by augself export --quantize.",
        ),
        option(
            "--decode",
            metavar="exact|fast",
            default="exact",
            show_default=True,
            help="fast decodes large JPEGs smaller: quicker, and features differ a little.",
        ),
    ]
