"""Options that stand in groups: `--help` shows them under their headings.

images = grouped("Images")

@click.command(cls=GroupedCommand)
@images("--data", required=True, help="Folder of images.")
def pretrain(data: str) -> None: ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Option = Callable[[Decorated], Decorated]


class GroupedOption(click.Option):
    """An option with the heading it stands under."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help shows its options under their headings, both in their order.

    What has no heading, such as --help, stands under `Help`.
    """

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(context):
            record = option.get_help_record(context)
            if isinstance(option, click.Option) and record is not None:
                headings.setdefault(getattr(option, "group", "Help"), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def grouped(group: str) -> Callable[..., Option[Any]]:
    """`click.option`, under a heading."""

    def option(*names: str, **attributes: Any) -> Option[Any]:
        return click.option(*names, cls=GroupedOption, group=group, **attributes)

    return option
