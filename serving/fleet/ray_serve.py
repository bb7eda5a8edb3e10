"""The server as a deployment of Ray Serve: many replicas, on one machine or a cluster.

    serve run serving.fleet.ray_serve:build options="--model org/name" min_replicas=2 max_replicas=8

Every replica is the whole server of `augself serve`, its gate and limits included. Where a replica
is full it says 429 itself; Ray's own limits are the net behind, for what a replica does not count.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from typing import Any

import click
from click.core import ParameterSource
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from augself_hub.cli import augself
from augself_hub.configuration import options_of
from augself_hub.errors import AugSelfError, UsageError
from serving import commands
from serving.http.api import create_app
from serving.http.gate import Gate
from serving.http.problems import RETRY_SECONDS
from serving.inference.names import named
from serving.inference.service import Service
from serving.inference.source import ModelSource
from serving.settings import ServerSettings

_START_SECONDS = 60.0
_RAYS = ("host", "port", "uds", "certificate", "key", "log_format", "log_level", "print_config")
_LONGER_THAN_THE_DEADLINE = 5.0


class Arguments(BaseModel):
    """What `serve run` passes on as NAME=VALUE.

    Args:
        options: of `augself serve`, but for --host, --port (Ray's own) and --demo.
        min_replicas, max_replicas: as many as requests need, between these.
        cpus, gpus: of one replica; cores also bound its threads where options do not.
    """

    model_config = ConfigDict(extra="forbid")

    options: str = ""
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class Replica:
    """One server. Ray replaces it where its models stay lost."""

    app: Gate

    def check_health(self) -> None:
        if not _ready(self.app):
            raise RuntimeError("a model is lost")


def build(arguments: dict[str, Any]) -> Application:
    """The deployment; nothing is loaded here.

    Raises:
        UsageError: options that cannot be, or are not for Ray.
        ValidationError: an argument that is none.
    """
    asked = Arguments.model_validate(arguments)
    models, run_as, settings = _read_options(asked)

    def app() -> Gate:
        sources = [ModelSource.find(model, *run_as, name=name) for name, model in named(models)]
        return _started(create_app(sources, settings))

    deployment = serve.deployment(
        serve.ingress(app)(Replica), name="augself", **_net(asked, settings)
    )
    return deployment.bind()


def _read_options(asked: Arguments) -> tuple[tuple[str, ...], commands.RunAs, ServerSettings]:
    """Models, how they are run, and the settings, as `augself serve` reads them."""
    serve_command = augself.get_command(click.Context(augself), "serve")
    assert serve_command is not None
    context = serve_command.make_context("augself serve", shlex.split(asked.options))
    options = dict(context.params)
    for name, option in options_of(serve_command).items():
        if option.name not in _RAYS:
            continue
        if context.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            mend = f"serve start --http-{name}" if name in ("host", "port") else "leave it out"
            raise UsageError(f"--{name} is Ray's to say: {mend}")
        del options[option.name]
    models = options.pop("models")
    (device, threads, precision, decode), settings = commands.settings_of(**options)
    if settings.demo:
        raise UsageError("the demo knows its visitors: one process, augself serve --demo")
    cores = max(1, int(asked.cpus))
    run_as = (device, threads or cores, precision, decode)
    own: Any = {"decoders": settings.decoders or cores, "request_ids": False}  # Ray's proxy does
    return models, run_as, dataclasses.replace(settings, **own)


def _net(asked: Arguments, settings: ServerSettings) -> dict[str, Any]:
    """Ray's limits, wide enough that a replica's own come first."""
    requests = settings.limits.max_concurrent_requests
    seconds = settings.limits.deadline_seconds
    return {
        "max_ongoing_requests": 2 * requests,  # health and metrics do not count
        "max_queued_requests": requests,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_SECONDS},
        "autoscaling_config": {
            "min_replicas": asked.min_replicas,
            "max_replicas": asked.max_replicas,
            "target_ongoing_requests": requests / 2,
        },
        "ray_actor_options": {"num_cpus": asked.cpus, "num_gpus": asked.gpus},
        "graceful_shutdown_timeout_s": seconds + _LONGER_THAN_THE_DEADLINE,
    }


def _started(gate: Gate) -> Gate:
    """Once its models ran; Ray asks for its health at once."""
    until = time.monotonic() + _START_SECONDS
    while not _ready(gate):
        if time.monotonic() > until:
            raise AugSelfError(f"the models do not run after {_START_SECONDS:g} seconds")
        time.sleep(0.05)
    return gate


def _ready(gate: Gate) -> bool:
    service: Service = gate.app.state.service  # type: ignore[attr-defined]
    return service.ready
