"""Every field of TrainingArguments is decided, refused, or changes something."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils

from augself_hub.errors import UsageError
from training.run import arguments as tables
from training.run import pretraining
from training.run.arguments import CHANGEABLE, DECIDED, REFUSED, training_arguments
from training.run.pretraining import pretrain


def test_every_field_of_the_installed_transformers_is_in_one_of_the_three_tables():
    """A field that a newer transformers adds fails this until somebody decides about it."""
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert fields == {*DECIDED, *CHANGEABLE, *REFUSED}
    assert len(fields) == len(DECIDED) + len(CHANGEABLE) + len(REFUSED)


@pytest.mark.parametrize("name", [*DECIDED, *REFUSED])
def test_what_cannot_be_changed_is_refused_by_name_with_its_reason(small_run, name):
    with pytest.raises(UsageError, match=f"--set {name} (would have no|cannot be changed)"):
        training_arguments(small_run(arguments={name: 2}))


def test_a_field_nobody_decided_about_is_refused(small_run, monkeypatch):
    monkeypatch.delitem(tables.REFUSED, "debug")
    with pytest.raises(UsageError, match="--set debug is newer than this version"):
        training_arguments(small_run(arguments={"debug": ""}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_step": 3}, "--set max_step: there is no such field; there are max_steps"),
        ({"max_steps": 0}, "--set max_steps 0: give a whole number of 1 or more"),
        ({"max_steps": 2.5}, "--set max_steps 2.5: give a whole number of 1 or more"),
        ({"bf16": "yes"}, "--set bf16 yes: give True or False"),
        ({"save_steps": 0}, "--set save_steps 0: give a number above 0"),
        ({"save_steps": 2.5}, "must be an integer if bigger than 1"),
        ({"logging_steps": -1}, "--set logging_steps -1: give a number above 0"),
        ({"save_total_limit": 1}, "--set save_total_limit 1: give a whole number of 2 or more"),
        ({"save_strategy": "best"}, "--set save_strategy best: give no, steps or epoch"),
        ({"gradient_accumulation_steps": 0}, "give a whole number of 1 or more"),
        ({"gradient_accumulation_steps": 8}, "is 1 image at a time: batch norm .* give 16 or more"),
        ({"torch_compile_backend": "magic"}, "--set torch_compile_backend magic: give .*inductor"),
        ({"adam_beta1": 0.8}, "--set adam_beta1 would have no effect: it needs --optimizer adamw"),
        ({"dataloader_prefetch_factor": 3}, "process, i.e. when --dataloader_num_workers > 0"),
        ({"dataloader_persistent_workers": False}, "no effect: it needs --workers of 1 or more"),
        ({"logging_strategy": "no", "logging_steps": 3}, "it needs logging_strategy=steps"),
        ({"save_strategy": "epoch", "save_steps": 3}, "it needs save_strategy=steps"),
        ({"save_strategy": "no", "save_total_limit": 3}, "it needs checkpoints"),
        ({"run_name": "mine"}, "it needs --report-to wandb or trackio"),
        ({"project": "mine"}, "it needs --report-to trackio"),
        ({"ddp_timeout": 60}, "it needs several processes"),
    ],
)
def test_a_value_that_is_wrong_or_would_do_nothing_is_refused(small_run, given, said):
    with pytest.raises(UsageError, match=said):
        training_arguments(small_run(arguments=given))


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
@pytest.mark.parametrize(
    "given",
    [
        {"fp16": True},
        {"tf32": False},
        {"dataloader_pin_memory": True},
        {"torch_empty_cache_steps": 1},
    ],
)
def test_what_only_a_gpu_has_is_refused_without_one(small_run, given):
    with pytest.raises(UsageError, match=r"it needs a GPU|GPU arch"):
        training_arguments(small_run(arguments=given))


@pytest.fixture
def trained(small_run, monkeypatch):
    """Make a few steps -> the trainer afterwards."""
    done = []
    monkeypatch.setattr(pretraining, "_publish", lambda s, t, *_: done.append(t))

    def run(optimizer="sgd", workers=0, report_to=(), base_lr=0.64, **given):
        output = f"run-{len(done)}"
        given = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", **given}
        given = {name: value for name, value in given.items() if value is not None}
        pretrain(
            small_run(
                output,
                optimizer=optimizer,
                workers=workers,
                report_to=report_to,
                base_lr=base_lr,
                monitor_every=0,
                arguments=given,
            )
        )
        return done[-1]

    return run


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def saved(run):
    return sorted(p.name for p in run.settings.output.glob("checkpoint-*"))


def logged(run):
    return [row["step"] for row in run.state.log_history if "loss" in row]


def test_steps_logs_and_checkpoints_come_when_asked_for(trained):
    assert trained(max_steps=1).state.global_step == 1
    assert logged(trained(max_steps=4, logging_steps=2)) == [2, 4]
    assert logged(trained(max_steps=4, logging_steps=4, logging_first_step=True)) == [1, 4]
    assert logged(trained(max_steps=5, logging_strategy="epoch", logging_steps=None)) == [4, 5]
    assert logged(trained(max_steps=3, logging_strategy="no", logging_steps=None)) == [3]
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    assert saved(trained(**steps)) == ["checkpoint-3", "checkpoint-4"]
    assert len(saved(trained(**steps, save_total_limit=3))) == 3
    assert saved(trained(max_steps=5, save_strategy="epoch")) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("sgd", {"max_grad_norm": 1e-3, "gradient_accumulation_steps": 2}),
        ("adamw", {"adam_beta1": 0.5, "adam_beta2": 0.5, "adam_epsilon": 1e-2}),
    ],
)
def test_what_changes_the_weights_changes_them(trained, optimizer, changes):
    plain, again = trained(optimizer), trained(optimizer)
    assert torch.equal(weights(plain), weights(again))
    for name, value in changes.items():
        other = trained(optimizer, **{name: value})
        assert not torch.equal(weights(plain), weights(other)), name


def test_bf16_full_determinism_and_the_log_level_are_switched_on(trained, small_run):
    before = transformers.logging.get_verbosity()
    assert small_run(size=32, arguments={"bf16": True}).arguments == {"bf16": True}
    arguments = training_arguments(small_run(size=32, arguments={"bf16": True}))
    assert arguments.mixed_precision == "bf16"
    try:
        trained(full_determinism=True, log_level="error")
        assert torch.are_deterministic_algorithms_enabled()
        assert transformers.logging.get_verbosity() == transformers.logging.ERROR
    finally:
        torch.use_deterministic_algorithms(False)
        transformers.logging.set_verbosity(before)


def test_torch_compile_gets_its_backend_and_mode(small_run):
    given = {"torch_compile_backend": "eager", "torch_compile_mode": "reduce-overhead"}
    arguments = training_arguments(small_run(arguments=given))
    plugin = accelerated(arguments)["dynamo_plugin"]
    assert (plugin.backend.value.lower(), plugin.mode) == ("eager", "reduce-overhead")
    arguments = training_arguments(small_run(arguments={"torch_compile": True}))
    assert accelerated(arguments)["dynamo_plugin"].backend.value.lower() == "inductor"


def test_workers_are_made_as_asked(trained):
    given = {"dataloader_multiprocessing_context": "spawn", "dataloader_prefetch_factor": 3}
    loader = trained(workers=1, dataloader_persistent_workers=False, **given)
    loader = loader.get_train_dataloader().base_dataloader
    assert loader.prefetch_factor == 3
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert not loader.persistent_workers


def test_a_gpu_s_switches_reach_transformers(small_run, monkeypatch):
    """On a machine without one: what would be asked of the device."""
    cpu = training_arguments(small_run(arguments={"use_cpu": True}))
    assert cpu.device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    seen = {}
    monkeypatch.setattr(
        tables, "TrainingArguments", lambda **given: seen.update(given) or Stop.now()
    )
    for name in ("use_cpu", "fp16", "tf32", "dataloader_pin_memory"):
        with pytest.raises(Stop):
            training_arguments(small_run(arguments={name: True}))
        assert seen[name] is True
    for name, value in (("torch_empty_cache_steps", 7), ("ddp_backend", "gloo")):
        with pytest.raises(Stop):
            training_arguments(small_run(arguments={name: value}))
        assert seen[name] == value
    assert seen["use_cpu"] is False


class Stop(Exception):
    @classmethod
    def now(cls):
        raise cls


def test_reporters_are_told_the_names_of_run_and_project(trained, monkeypatch):
    """A reporter of transformers' own interface, under a name it knows."""
    told = []

    class Reporter(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            told.append((args.run_name, args.project))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Reporter)
    monkeypatch.setitem(sys.modules, "trackio", ModuleType("trackio"))
    monkeypatch.setattr(tables, "get_available_reporting_integrations", lambda: ["trackio"])
    trained(report_to=("trackio",), run_name="mine", project="ours")
    assert told == [("mine", "ours")]


def test_several_processes_are_connected_as_asked(small_run, monkeypatch):
    """What torch's DDP would be given; two processes train for real in test_distributed."""
    monkeypatch.setattr(tables, "_unmet", lambda *_: None)
    given = {
        "ddp_find_unused_parameters": True,
        "ddp_bucket_cap_mb": 5,
        "ddp_broadcast_buffers": False,
        "ddp_timeout": 60,
    }
    arguments = training_arguments(small_run(arguments=given))
    connected = accelerated(arguments)["kwargs_handlers"][0]
    assert (connected.find_unused_parameters, connected.bucket_cap_mb) == (True, 5)
    assert connected.broadcast_buffers is False
    assert arguments.ddp_timeout_delta.seconds == 60


def accelerated(arguments):
    """What transformers' trainer gives to accelerate."""
    trainer = SimpleNamespace(args=arguments, model=torch.nn.Linear(1, 1))
    return transformers.Trainer._build_accelerator_args(trainer)


def test_a_batch_of_one_image_is_refused(small_run):
    with pytest.raises(UsageError, match=r"--batch-size 1 is 1 image at a time.*give 2 or more"):
        training_arguments(small_run(batch_size=1))
