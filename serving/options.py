"""What commands of this part share: options, help that shows them in groups, missing extras."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from augself_hub.errors import MissingExtra
from augself_hub.precision import PRECISIONS

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class GroupedOption(click.Option):
    """An option with the heading it stands under."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help shows its options under their headings, in their order."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(context):
            record = option.get_help_record(context)
            if record is not None:
                headings.setdefault(getattr(option, "group", "Help"), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def grouped(group: str) -> Callable[..., Callable[[Decorated], Decorated]]:
    """`click.option`, under a heading."""

    def option(*names: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
        return click.option(*names, cls=GroupedOption, group=group, **attributes)

    return option


def running(option: Callable[..., Any]) -> list[Callable[[Decorated], Decorated]]:
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


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: what is not installed is an error that names the extra it comes with."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "a package", extra) from error
