"""Training from Python: what `augself pretrain` and `augself fit-...` call, too."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from augself_hub.errors import UsageError
from augself_hub.folder import own_folder
from augself_hub.lazy import needs
from augself_hub.paths import path_text
from training.run.settings import CHOSEN, FIXED, FROZEN, FROZEN_DEFAULTS, PAIRS, Options, Settings

if TYPE_CHECKING:
    from augself_hub.images import Options as Reading

Function = TypeVar("Function", bound=Callable[..., Any])


# This line of a docstring; help() shows every setting in its place.
_SETTINGS = (
    "        **settings: of a run; `help(augself_hub.pretrain)` lists them all with their defaults."
)


def _documented(without: tuple[str, ...] = (), **defaults: Any) -> Callable[[Function], Function]:
    """Gives a function that takes `Options` the signature and the text of each field."""

    def decorate(function: Function) -> Function:
        own = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        lines, fields = [], []
        for one in dataclasses.fields(Settings):
            if one.name in ("data", "output", *without):
                continue
            factory = one.default_factory
            default = one.default if factory is dataclasses.MISSING else factory()
            default = defaults.get(one.name, None if one.name in CHOSEN else default)
            shown = CHOSEN[one.name] if default is None and one.name in CHOSEN else repr(default)
            rule = one.metadata["rule"]
            may = f" ({rule})" if rule is not None and str(rule) != "a text" else ""
            lines.append(f"        {one.name}: {one.metadata['help']}{may} Default: {shown}.")
            fields.append(
                inspect.Parameter(
                    one.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=one.type,
                )
            )
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*own, *fields], return_annotation=Path
        )
        function.__doc__ = (function.__doc__ or "").replace(_SETTINGS, "\n".join(lines))
        return function

    return decorate


@_documented()
def pretrain(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    recipe: str | None = None,
    **settings: Unpack[Options],
) -> Path:
    """Pretrain an encoder with AugSelf on a folder of images.

    Example:
        folder = pretrain("PHOTOS", "runs/first", method="simsiam", epochs=50)

    Args:
        data: a folder of images, or another source that `augself pretrain --data` takes.
        output: the run's folder; new, unless it is resumed.
        resume: go on from the newest valid checkpoint; what has none yet is begun.
        recipe: a named run's settings, wherever none is given here.
        **settings: of a run; `help(augself_hub.pretrain)` lists them all with their defaults.

    Returns:
        The model folder, output/model; `output` where SIGTERM stopped the run after a checkpoint.

    Raises:
        UsageError: a setting that is unknown or wrong; nothing was read or written then.
        AugSelfError: no usable images, no room on the disk, a run that cannot be resumed.
        Diverged: the run had nothing to gain any more.
    """
    if settings.get("method") == FROZEN:
        raise UsageError(f"--method {FROZEN} is what augself fit-heads ENCODER does: give that")
    given: dict[str, Any] = dict(settings)
    bounds: dict[str, int] = {}
    if recipe is not None:
        from training.recipes import recipe as recipe_of

        bounds = recipe_of(recipe).bounds
        for name, value in recipe_of(recipe).settings.items():
            given[name] = (
                {**value, **given.get(name, {})} if name in PAIRS else given.get(name, value)
            )
    return _run(data, output, resume, given, bounds)


@_documented(without=FIXED, **FROZEN_DEFAULTS)
def fit_heads(  # type: ignore[misc]  # encoder is a setting, too; given by name it is this one
    encoder: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    **settings: Unpack[Options],
) -> Path:
    """Train AugSelf heads on a frozen encoder, which is published as it came.

    Args:
        encoder: a model folder or Hub id.
        data, output, resume: as `pretrain` takes them.
        **settings: of a run; `help(augself_hub.pretrain)` lists them all with their defaults.

    Returns, Raises: as `pretrain` does.
    """
    if fixed := sorted({*settings} & {*FIXED}):
        raise UsageError(f"--{fixed[0].replace('_', '-')} would have no effect on fitting heads")
    given = {
        **FROZEN_DEFAULTS,
        **settings,
        "encoder": path_text("encoder", encoder),
        "method": FROZEN,
    }
    return _run(data, output, resume, given)


def fit_matcher(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    held_out: str | os.PathLike[str] | None = None,
    split: str | None = None,
    column: Sequence[str] = (),
    read_as: str | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    group: str | None = None,
) -> Path:
    """Add a matcher to a model folder: where view b lies in view a, from the encoder's maps.

    Encoder and heads stay as they are. The folder is changed in one step, with its graphs, card and
    results; a matcher that it has already is replaced, or with the option go_on fitted further.

    Example:
        fit_matcher("runs/first/model", "PHOTOS", options={"pairs": 20000})

    Args:
        model: a model folder with a crop head of convention relative.
        data: images to fit on, any source that `pretrain` takes but a stream.
        held_out: images to measure on; default: 5% of data.
        split, column, read_as: how data is read, as `pretrain` takes them; held_out is read by the
            same columns and as the same layout, where it has them.
        seed: of initialisation, order and views.
        options: of the fit, e.g. pairs (of views, in all), passes (of each), rate or go_on.
        group: a regular expression: held-out images in whose names it matches the same text, e.g.
            tiles of one photograph, count as one in intervals, halves and strangers.

    Returns:
        The folder.

    Raises:
        UsageError: an option that is wrong, or an encoder that gives no maps.
        AugSelfError: no usable images.
    """
    folder, images, others, reading = _addition(
        "fit-matcher", model, data, held_out, column, split, read_as
    )
    with needs("train"):
        from training.run.matching import add_matcher

        add_matcher(folder, images, others, reading, seed, options, group)
    return folder


def fit_uncertainty(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    held_out: str | os.PathLike[str] | None = None,
    split: str | None = None,
    column: Sequence[str] = (),
    read_as: str | None = None,
    seed: int = 0,
    group: str | None = None,
) -> Path:
    """Add a standard error of each pair to what the heads of a model folder say.

    `pretrain` and `fit_heads` do so by themselves; this is for folders made before. What encoder,
    heads and matcher answer stays as it is. The folder is changed in one step; errors that it
    states already are replaced.

    Args:
        model: a model folder with a head that predicts a number.
        data, held_out, split, column, read_as, seed, group: as `fit_matcher` takes them.

    Returns:
        The folder.

    Raises:
        UsageError: no such head, or an option that is wrong.
        AugSelfError: no usable images.
    """
    folder, images, others, reading = _addition(
        "fit-uncertainty", model, data, held_out, column, split, read_as
    )
    with needs("train"):
        from training.run.uncertainty import add_uncertainty

        add_uncertainty(folder, images, others, reading, seed, group)
    return folder


def _addition(
    command: str,
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    held_out: str | os.PathLike[str] | None,
    column: Sequence[str],
    split: str | None,
    read_as: str | None,
) -> tuple[Path, str, str | None, Reading]:
    """The folder that something is added to, images to fit and to measure on, and their reading."""
    from augself_hub.images import Columns, Options

    others = None if held_out is None else path_text("held_out", held_out)
    reading = Options(Columns.parse(tuple(column)), split, read_as)
    folder = own_folder(path_text("model", model), command)
    return folder, path_text("data", data), others, reading


def _run(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    resume: bool,
    given: dict[str, Any],
    bounds: Mapping[str, int] | None = None,
) -> Path:
    if unknown := sorted({*given} - {field.name for field in dataclasses.fields(Settings)}):
        raise UsageError(f"there is no setting {unknown[0]!r}: see help(augself_hub.pretrain)")
    given = {name: v for name, v in given.items() if not (name in CHOSEN and v is None)}
    settings = Settings(
        data=path_text("data", data), output=Path(path_text("output", output)), **given
    )
    with needs("train"):
        from training.run.pretraining import pretrain as run  # torch, once the settings are right

        return run(settings, resume=resume, free=CHOSEN.keys() - given.keys(), bounds=bounds)
