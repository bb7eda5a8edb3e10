"""The commands `augself serve`, `augself predict` and `augself extract`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from augself_hub.configuration import printed
from augself_hub.errors import UsageError
from augself_hub.images import Columns, Options
from augself_hub.images.words import COLUMN_HELP, LAYOUTS, READ_AS_HELP, ROOT_HELP
from augself_hub.lazy import needs
from augself_hub.options import GroupedCommand, grouped
from serving.logs import FORMS, LEVELS, configure
from serving.options import running

if TYPE_CHECKING:
    from serving.extraction.pipeline import Summary
    from serving.settings import ServerSettings

_DEVICE, _PRECISION, _DECODE = running(click.option)
_WORKERS = click.option(
    "--threads",
    type=click.IntRange(1),
    help="Batches computed in parallel, a core each. Default: all usable cores, or the cluster's.",
)
_MODEL = click.option(
    "--model", help="A model folder or a Hub id (org/name@revision). Default: the embedded model."
)
_MODELS, _ADDRESS, _LIMITS, _SPEED, _SECURITY, _LOGS = (
    grouped(heading)
    for heading in ("Models", "Address", "Limits", "Performance", "Security", "Logs")
)
_SERVED_DEVICE, _SERVED_PRECISION, _SERVED_DECODE = running(_MODELS)
_TOKENS = ("AUGSELF_TOKEN", "AUGSELF_SERVE_TOKEN")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW = click.Path(dir_okay=False, path_type=Path)
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Until the server itself heeds it, SIGTERM ends the process at once: nothing is answered yet.

    As the first process of a container it would not even be told while a model is loaded.
    """
    if threading.current_thread() is not threading.main_thread():  # others must not set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@click.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@_MODEL
@_DEVICE
@_PRECISION
@_DECODE
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON: one record of /v1/augmentations, with the model.",
)
def predict(
    a: Path, b: Path, model: str | None, device: str, precision: str, decode: str, as_json: bool
) -> None:
    """Predict what takes picture A to picture B."""
    with needs("serve"):
        from serving.encoder import Encoder
    encoder = Encoder(model, device=device, precision=precision, decode=decode)
    difference = encoder.difference(a, b)
    click.echo(json.dumps(difference.to_dict(), indent=2) if as_json else str(difference))


@click.command()
@click.argument("source")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A new folder, or one to go on with.",
)
@_MODEL
@click.option("--column", "columns", multiple=True, metavar="ROLE=NAME", help=COLUMN_HELP)
@click.option("--split", help="Extract only this split (train, val, test ...). Default: all.")
@click.option("--read-as", "kind", type=click.Choice(LAYOUTS), help=READ_AS_HELP)
@click.option("--image-root", type=click.Path(path_type=Path, file_okay=False), help=ROOT_HELP)
@click.option("--pairs", is_flag=True, help="SOURCE is a CSV of pairs a, b: predict differences.")
@click.option(
    "--dtype", type=click.Choice(("float32", "float16")), default="float32", help="Of features."
)
@click.option("--normalize", is_flag=True, help="Scale each image's features to length 1.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(("parquet", "npy")),
    default="parquet",
    help="npy: one features.npy beside ids.parquet.",
)
@click.option(
    "--shard-rows",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="Images in one file of the table.",
)
@click.option(
    "--max-errors",
    metavar="N|SHARE",
    help="Exit with 1 if more images cannot be read: 10, 0.01 or 1%. Default: any number.",
)
@_DEVICE
@_PRECISION
@_DECODE
@_WORKERS
@click.option(
    "--engine",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="Compute in this process, or on the workers of a Ray cluster.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def extract(
    source: str,
    output: Path,
    as_json: bool,
    columns: tuple[str, ...],
    **options: Any,
) -> None:
    """Write the features of the images in SOURCE as a table.

    SOURCE is a folder (its sub-folders are the classes), a glob, a list (.txt) or CSV of paths,
    WebDataset tars, parquet files (also as URLs), or a Hugging Face dataset. The same command goes
    on where an interrupted one stopped.
    """
    with needs("serve"):
        from serving.extraction import api
        from serving.extraction.tables import TableSettings
    settings = TableSettings(*(options.pop(name) for name in ("dtype", "normalize", "pairs")))
    reading = {name: options.pop(name) for name in ("split", "kind", "image_root")}
    asked = api.Extraction(
        settings=settings, reading=Options(Columns.parse(columns), **reading), **options
    )
    summary = asked.write(source, output)
    click.echo(_summary(output, summary, as_json))
    asked.refuse_errors(summary, output)


@click.command(cls=GroupedCommand)
@_MODELS(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]MODEL",
    help="Repeatable: a model folder or Hub id. Default: the embedded model.",
)
@_SERVED_DEVICE
@_SERVED_PRECISION
@_SERVED_DECODE
@_MODELS("--lazy", is_flag=True, help="Load a model at its first request, not at start.")
@_MODELS(
    "--memory-limit",
    type=click.IntRange(1),
    metavar="BYTES",
    help="Of all loaded models; beyond it the least recently used is unloaded.",
)
@_MODELS("--demo", is_flag=True, help="Show the demo at /.")
@_MODELS(
    "--demo-table",
    "table",
    type=click.Path(exists=True, file_okay=False),
    help="Show the demo; its nearest neighbours are searched in this table of augself extract.",
)
@_ADDRESS(
    "--host", default="127.0.0.1", show_default=True, help="Address to bind; 0.0.0.0 or :: for all."
)
@_ADDRESS("--port", type=click.IntRange(0, 65535), default=7860, show_default=True)
@_ADDRESS("--uds", type=_NEW, metavar="FILE", help="Listen on a Unix socket, instead of both.")
@_ADDRESS(
    "--root-path",
    default="",
    metavar="/PATH",
    help="Path prefix of this server behind a reverse proxy.",
)
@_ADDRESS("--tls-certificate", "certificate", type=_FILE, help="Serve HTTPS: PEM, with its chain.")
@_ADDRESS("--tls-key", "key", type=_FILE, help="PEM, without a password.")
@_LIMITS(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="Repeatable: change one, as max_queue_size=512. /v1/models and docs/server.md list them.",
)
@_SPEED(
    "--threads", type=click.IntRange(1), help="Of each model's session. Default: all usable cores."
)
@_SPEED(
    "--decoders",
    type=click.IntRange(1),
    help="Threads that decode images. Default: as many as usable cores.",
)
@_SPEED(
    "--max-batch-size",
    type=click.IntRange(1, 32),
    default=32,
    show_default=True,
    help="Images of several requests in one run of the model.",
)
@_SPEED("--max-batch", type=click.IntRange(1, 32), hidden=True)  # its name in 0.1
@_SECURITY(
    "--token",
    "tokens",
    multiple=True,
    envvar=_TOKENS[0],
    help="Repeatable: API key that clients must send. AUGSELF_TOKEN holds several, blanks between.",
)
@_SECURITY("--tokens-file", type=_FILE, help="A file of API keys, one a line.")
@_SECURITY(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="NAME",
    help="Repeatable: accept this name in the Host header; * is any. Without it a server bound to "
    "a loopback address accepts only names of this machine, others accept any.",
)
@_SECURITY(
    "--allow-origin",
    "allow_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Repeatable: CORS for pages of this origin (https://example.org); * is any.",
)
@_SECURITY(
    "--allow-url-host",
    "url_hosts",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Repeatable: fetch images given as URLs of this host. Default: none are fetched.",
)
@_LOGS("--access-log", metavar="FILE|-", help="A JSON line for each request; - is standard output.")
@_LOGS(
    "--log-format",
    type=click.Choice(FORMS),
    default="text",
    show_default=True,
    help="Of the server's log, on standard error.",
)
@_LOGS("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@click.option("--print-config", is_flag=True, help="Print all options as a --config file, and end.")
@_ended_by_sigterm()
def serve(
    models: tuple[str, ...],
    port: int,
    certificate: Path | None,
    key: Path | None,
    log_format: str,
    log_level: str,
    print_config: bool,
    **options: Any,
) -> None:
    """Serve models over HTTP: /v1/embeddings, /v1/augmentations, /v2; /docs describes them."""
    with needs("serve"):
        from serving.http.api import create_app
        from serving.http.server import Address, run
        from serving.inference.names import named
        from serving.inference.source import ModelSource
    host, uds = options.pop("host"), options.pop("uds")
    given_by = click.get_current_context().get_parameter_source
    if uds is not None and not given_by("host") is given_by("port") is ParameterSource.DEFAULT:
        raise UsageError("--uds listens on a file: leave --host and --port out")
    configure(log_format, log_level)
    # Whoever reaches a socket is let in by its mode, whatever they call the server.
    run_as, settings = settings_of(host=host if uds is None else None, **options)
    address = Address(host, port, uds, certificate, key)
    if print_config:
        context = click.get_current_context()
        unused = () if uds is None else ("host", "port")
        click.echo(printed("serve", context, ("token",), "print-config", unused))
        return
    sources = [ModelSource.find(model, *run_as, name=name) for name, model in named(models)]
    run(create_app(sources, settings), address)


RunAs = tuple[str, int | None, str, str]  # device, threads, precision, decode


def settings_of(
    limits: tuple[str, ...],
    tokens: tuple[str, ...],
    tokens_file: Path | None,
    demo: bool,
    table: str | None,
    **options: Any,
) -> tuple[RunAs, ServerSettings]:
    """The options of `augself serve` -> how models are run (`ModelSource.find`) and the settings.

    The options of an address are left out where somebody else listens.
    """
    from serving.http.keys import read_tokens
    from serving.limits import Limits
    from serving.settings import ServerSettings

    for variable in _TOKENS:
        if not os.environ.get(variable, "set").strip():
            raise UsageError(f"{variable} is empty: give it tokens, or unset it to serve everybody")
    old = options.pop("max_batch")
    if old is not None:
        logger.warning("--max-batch is called --max-batch-size now")
        default = ServerSettings.max_batch_size
        if options["max_batch_size"] == default:  # nobody gave it
            options["max_batch_size"] = old
    device, threads = options.pop("device"), options.pop("threads")
    run_as = (device, threads, options.pop("precision"), options.pop("decode"))
    settings = ServerSettings(
        Limits.parse(limits),
        demo=demo or table is not None,
        table=table,
        tokens=(*tokens, *(read_tokens(tokens_file) if tokens_file else ())),
        **options,
    )
    return run_as, settings


def _summary(output: Path, summary: Summary, as_json: bool) -> str:
    counts = summary.counts
    if as_json:
        numbers = dataclasses.asdict(summary)
        numbers["inventory"] = summary.inventory.record()
        return json.dumps({"output": str(output), **numbers.pop("counts"), **numbers})
    line = f"{output}: {counts.rows} rows of {counts.images} images, {counts.errors} unreadable"
    if not summary.computed:
        return f"{line}; already complete"
    return f"{line}; {summary.images_per_second:.0f} images/s"
