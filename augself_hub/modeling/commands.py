"""Commands of the `augself` command line that need torch. Torch is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from augself_hub.images.words import COLUMN_HELP, LAYOUTS, READ_AS_HELP
from augself_hub.precision import FORMATS, QUANTIZED, graph_of


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path), help="A model folder.")
@click.option(
    "--format",
    "wanted",
    type=click.Choice(FORMATS),
    help="Also write onnx/model.onnx: the encoder as this and other tools of the Hub take it.",
)
@click.option(
    "--quantize",
    "precision",
    type=click.Choice(QUANTIZED),
    help="Add a smaller graph, made from the one that is there: int8 for CPUs, fp16 for GPUs.",
)
@click.option(
    "--calibration",
    metavar="SOURCE",
    help="With --quantize: photographs to calibrate and judge it by (docs/data-sources.md).",
)
@click.option("--column", multiple=True, metavar="ROLE=NAME", help=COLUMN_HELP)
@click.option("--split", help="One split of the photographs, in any spelling. Default: all.")
@click.option("--read-as", type=click.Choice(LAYOUTS), help=READ_AS_HELP)
@click.option(
    "--require-speedup", type=float, help="With --quantize int8: least speed-up over fp32."
)
@click.option(
    "--triton",
    "repository",
    type=click.Path(file_okay=False, path_type=Path),
    help="Add the graphs that are there to a model repository for NVIDIA Triton.",
)
@click.option(
    "--precision",
    "packed",
    type=click.Choice(("fp32", *QUANTIZED)),
    help="With --triton: precision of the encoder's graph. Default: fp32.",
)
def export(
    model: Path,
    wanted: str | None,
    precision: str | None,
    calibration: str | None,
    require_speedup: float | None,
    repository: Path | None,
    packed: str | None,
    **reading: Any,
) -> None:
    """Write the ONNX graphs of a model folder; refused where they differ from torch."""
    _refuse_misplaced(repository, packed, precision)
    if repository is not None:
        if wanted is not None:
            raise click.UsageError("--triton takes the graphs that are there: --format by itself")
        if calibration is not None or require_speedup is not None or any(reading.values()):
            raise click.UsageError(
                "--calibration, how it is read, and --require-speedup go with --quantize"
            )
        _pack(model, repository, packed or "fp32")
        return
    from augself_hub.modeling.api import export as run

    measured = run(
        model,
        format=wanted,
        quantize=precision,
        calibration=calibration,
        require_speedup=require_speedup,
        **reading,
    )
    from augself_hub.folder import HEADS_GRAPH, MATCHER_GRAPH, STOCK_GRAPH

    encoder = model / graph_of(model, precision or "fp32")
    if precision is not None:
        _print_quantized(measured)
        click.echo(f"wrote {encoder}")
        return
    for part, difference in measured.items():
        click.echo(f"{part}: largest difference from torch {difference:.1e} (norm-relative)")
    others = {"heads": HEADS_GRAPH, "matcher": MATCHER_GRAPH, "pooler_output": STOCK_GRAPH}
    graphs = [encoder, *(model / path for part, path in others.items() if part in measured)]
    click.echo(f"wrote {' and '.join(map(str, graphs))}")


def _refuse_misplaced(repository: Path | None, packed: str | None, precision: str | None) -> None:
    """What goes with --triton, and what does not."""
    if repository is None and packed is not None:
        raise click.UsageError("--precision is read with --triton only")
    if repository is not None and precision is not None:
        raise click.UsageError(
            f"--triton takes the graphs that are there: --quantize {precision} first, "
            f"then --triton {repository} --precision {precision}"
        )


def _pack(model: Path, repository: Path, precision: str) -> None:
    from augself_hub.modeling.triton import write_repository

    written = write_repository(str(model), repository, precision)
    click.echo(f"wrote {' and '.join(map(str, written))}")


def _print_quantized(measured: dict[str, Any]) -> None:
    mean, worst, loss = (measured[k] for k in ("cosine_mean", "cosine_worst", "probe_loss"))
    click.echo(f"features: cosine with fp32 {mean:.4f} on average, {worst:.4f} at worst")
    click.echo(f"linear probe: {'not measured' if loss is None else f'loss {loss:.4f}'}")
    for part in ("heads", "matcher"):
        for kind, change in measured.get(part, {}).items():
            name = f"head {kind}" if part == "heads" else f"matcher, {kind}"
            click.echo(f"{name}: average change {change:.3f}")
    speed = measured["speed"]
    click.echo(
        f"speed: {speed['speedup']:.2f} times fp32" if speed else "not tried on a GPU, only on CPU"
    )


@click.command()
@click.argument("checkpoint")
@click.option(
    "--pretrain-data",
    type=click.Choice(["stl10", "imagenet100", "imagenet"]),
    help="What CHECKPOINT was trained on: gives image size and normalisation.",
)
@click.option(
    "--to",
    "library",
    type=click.Choice(["torchvision", "timm"]),
    help="CHECKPOINT is a model folder or Hub id: write its ResNet for this library.",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Must not exist.")
def convert(checkpoint: str, pretrain_data: str | None, library: str | None, output: Path) -> None:
    """Turn an AugSelf, torchvision or timm checkpoint into a model folder, or (--to) back."""
    if (pretrain_data is None) == (library is None):
        raise click.UsageError(
            "give one of --pretrain-data (to a model folder) and --to (from one)"
        )
    from augself_hub.modeling import convert as conversion

    if library is not None:
        conversion.export_weights(checkpoint, library, output)
        click.echo(f"wrote {output}, the encoder for {library}, without a classifier")
        return
    model = conversion.convert(Path(checkpoint), str(pretrain_data), output)
    kinds = ", ".join(model.spec.heads) or "none"
    click.echo(f"wrote {output}: {model.spec.features} features, heads: {kinds}")
