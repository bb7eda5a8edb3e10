"""A group of commands as a program: `python -m research.NAME`."""

from __future__ import annotations

import logging
import sys

import click

from augself_hub.errors import AugSelfError


def run_program(group: click.Group, name: str) -> None:
    """Carry out what the command line asks for; progress in plain lines, an error in one."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        group.main(prog_name=f"python -m {name}", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit("error: interrupted")
    except (AugSelfError, OSError) as error:
        sys.exit(f"error: {error}")
