"""The `augself` command: a table of lazily imported sub-commands.

Exit status: 0 done, 1 failed, 2 wrong usage. An error is one line that names the mend; `--debug`
adds the traceback. Options also come from the environment and a file, see `configuration`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback

import click

from augself_hub import __version__
from augself_hub.configuration import configurable, origin
from augself_hub.errors import AugSelfError, UsageError
from augself_hub.lazy import explained, load
from augself_hub.terminal import PlainFormatter, shown

COMMANDS = {
    "pretrain": "training.commands:pretrain",
    "fit-heads": "training.commands:fit_heads",
    "fit-matcher": "training.commands:fit_matcher",
    "fit-uncertainty": "training.commands:fit_uncertainty",
    "evaluate": "training.evaluation.commands:evaluate",
    "convert": "augself_hub.modeling.commands:convert",
    "export": "augself_hub.modeling.commands:export",
    "push": "augself_hub.commands:push",
    "pull": "augself_hub.commands:pull",
    "list": "augself_hub.commands:list_command",
    "verify": "augself_hub.commands:verify",
    "list-images": "augself_hub.commands:list_images",
    "predict": "serving.commands:predict",
    "extract": "serving.commands:extract",
    "index": "serving.search.commands:index",
    "search": "serving.search.commands:search",
    "serve": "serving.commands:serve",
}
EXTRAS = {  # what a command is installed with; the others need nothing more
    "pretrain": "train",
    "fit-heads": "train",
    "fit-matcher": "train",
    "fit-uncertainty": "train",
    "evaluate": "train,extract",
    "convert": "model",
    "export": "export",
    "predict": "serve",
    "extract": "extract",
    "index": "search",
    "search": "search",
    "serve": "serve",
}


_DEBUG = "AUGSELF_DEBUG"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        return configurable(name, load(module, attribute, _extra([name])), COMMANDS)


@click.group(cls=LazyGroup)
@click.version_option(__version__, prog_name="augself")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    envvar=_DEBUG,
    help=f"Print an error's traceback. Also {_DEBUG}=1.",
)
def augself() -> None:
    """Train, publish and serve augmentation-aware image features."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for ours in ("augself_hub", "training", "serving"):
        logging.getLogger(ours).setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    _open_streams()
    if os.getpid() == 1:  # of a container: the kernel tells it of no signal it has no handler for
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        augself.main(arguments, prog_name="augself", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.BadParameter) and error.ctx and error.param:
            where = origin(error.ctx, error.param)
            if where:
                said = f"{error.message} ({where})"
                error = click.BadParameter(said, error.ctx, error.param, error.param_hint)
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except ImportError as error:
        known = explained(error, _extra(arguments))
        if known is error:
            raise
        _fail(str(known), 1, _debugs(arguments))
    except (AugSelfError, OSError) as error:
        status = 2 if isinstance(error, UsageError) else 1
        _fail(str(error), status, _debugs(arguments))


def _open_streams() -> None:
    """A service may be started with closed ones: what is opened next would take their place."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _debugs(arguments: list[str]) -> bool:
    return "--debug" in arguments or os.environ.get(_DEBUG, "0").lower() in (
        "1",
        "true",
        "yes",
        "on",
    )


def _extra(arguments: list[str]) -> str:
    """What the command among these words is installed with."""
    return next((EXTRAS[word] for word in arguments if word in EXTRAS), "all")


def _fail(message: str, status: int, debug: bool = False) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {shown(' '.join(message.split()))}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
