"""Commands of the `augself` command line that need torch. Torch is imported when they run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path), help="A model folder.")
def export(model: Path) -> None:
    """Write the ONNX graphs of a model folder; refused where they differ from torch."""
    from augself_hub import hub
    from augself_hub.modeling.export import export_folder

    parity = export_folder(hub.resolve(model))
    for part, difference in parity.items():
        click.echo(f"{part}: largest difference from torch {difference:.1e} (norm-relative)")
    click.echo(f"wrote {model / hub.ENCODER_GRAPH} and {model / hub.HEADS_GRAPH}")
