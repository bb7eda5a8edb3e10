"""What the optimizer and its schedule do, and how a batch is shared out."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from augself_hub.errors import AugSelfError, UsageError
from training.data.batches import KeyedSampler
from training.methods import METHODS
from training.run import pretraining, trainer
from training.run.arguments import LEAST_BF16, training_arguments
from training.run.pretraining import pretrain


@pytest.fixture
def settings(small_run):
    arguments = {"logging_steps": 1, "save_strategy": "no"}
    return small_run(epochs=2, base_lr=0.64, weight_decay=0.01, arguments=arguments)


@pytest.fixture(params=["step"])
def trained(settings, monkeypatch, request):
    """A finished SimSiam run of 8 steps: its trainer and the learning rates of every step."""
    settings = dataclasses.replace(settings, schedule_by=request.param)
    rates, done = [], []
    original = trainer._MethodSteps.on_pre_optimizer_step

    def note(self, args, state, control, **others):
        rates.append([group["lr"] for group in self.trainer.optimizer.param_groups])
        original(self, args, state, control, **others)

    monkeypatch.setattr(trainer._MethodSteps, "on_pre_optimizer_step", note)
    monkeypatch.setattr(pretraining, "_publish", lambda s, t, *_: done.append(t))
    pretrain(settings)
    return done[0], rates


def test_sgd_decays_every_weight_on_a_cosine_but_for_the_predictor_s_rate(trained):
    run, rates = trained
    lr = 0.64 * 8 / 256
    assert len(rates) == 8
    for step, (encoder, predictor) in enumerate(rates):
        assert encoder == pytest.approx(lr * (1 + math.cos(math.pi * step / 8)) / 2)
        assert predictor == pytest.approx(lr)
    groups = run.optimizer.param_groups
    assert {group["momentum"] for group in groups} == {0.9}
    assert {group["weight_decay"] for group in groups} == {0.01}
    model = run.model
    assert {id(p) for p in groups[1]["params"]} == {
        id(p) for p in model.method.predictor.parameters()
    }
    optimised = {id(p) for group in groups for p in group["params"]}
    assert optimised == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("trained", ["epoch"], indirect=True)
def test_official_schedules_step_once_an_epoch(trained):
    """Two epochs of four steps: lr (1 + cos(pi e / 2)) / 2 in epoch e, which is all and a half."""
    run, rates = trained
    lr = 0.64 * 8 / 256
    assert [encoder for encoder, _ in rates] == pytest.approx([lr] * 4 + [lr / 2] * 4)
    assert [predictor for _, predictor in rates] == pytest.approx([lr] * 8)
    assert run.epoch_steps == 4


def test_the_log_has_every_part(trained):
    rows = [row for row in trained[0].state.log_history if "loss" in row]
    assert len(rows) == 8
    for row in rows:
        assert row["loss"] == pytest.approx(row["method"] + row["crop"] + row["color"], abs=1e-4)
        assert 0 < row["feature_std"] < 1.5


def test_a_batch_is_one_optimizer_step_however_it_is_accumulated(settings):
    settings.arguments["gradient_accumulation_steps"] = 4
    arguments = training_arguments(settings)
    assert arguments.per_device_train_batch_size == 2
    assert arguments.learning_rate == pytest.approx(0.64 * 8 / 256)


def test_a_batch_that_cannot_be_shared_out_is_refused(settings):
    settings.arguments["gradient_accumulation_steps"] = 3
    with pytest.raises(UsageError, match=r"--batch-size 8 cannot be shared .* multiple of 3"):
        training_arguments(settings)


def test_several_gpus_without_torchrun_are_one(settings, monkeypatch, caplog):
    """nn.DataParallel would take two batches a step and part the two views of an image."""

    class Two(TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 2

    done = []
    monkeypatch.setattr("training.run.arguments.TrainingArguments", Two)
    monkeypatch.setattr(pretraining, "_publish", lambda s, t, *_: done.append(t))
    pretrain(dataclasses.replace(settings, epochs=1))
    assert done[0].args.n_gpu == 1 and done[0].args.train_batch_size == 8
    assert done[0].state.global_step == 4  # of 38 images
    assert caplog.text.count("2 GPUs are here and one is used: ") == 1


def test_what_other_processes_cannot_decode_counts(settings, monkeypatch, caplog):
    """Each sees its share of an epoch: 4 of 38 are too many, of which this one met none."""
    others = {f"{number}.jpg" for number in range(4)}
    monkeypatch.setattr(trainer, "all_union", lambda names: names | others)
    with pytest.raises(AugSelfError, match=r"10\.5% of the data cannot be decoded, more than 10"):
        pretrain(settings)
    assert "skipped" not in caplog.text  # it is for those who met them to name them


def test_an_epoch_is_whole_batches_of_an_order_of_its_own():
    sampler = KeyedSampler(19, seed=0, batch=8)
    first = list(sampler)
    assert len(first) == len(sampler) == 16
    assert len({index for _, index in first}) == 16
    sampler.set_epoch(1)
    later = list(sampler)
    assert {epoch for epoch, _ in later} == {1}
    assert [i for _, i in later] != [i for _, i in first]
    assert {i for _, i in [*first, *later]} > {i for _, i in first}  # nothing is left out for ever
    assert torch.tensor(first).max() <= 18


def test_accumulated_gradients_are_the_mean_of_the_parts(settings, monkeypatch):
    """The optimizer sees the mean of what each part alone would give it."""
    settings.arguments.update(gradient_accumulation_steps=2, max_steps=1)
    seen, batches, before = {}, [], {}
    compute = trainer.AugSelfTrainer.compute_loss

    def note_batch(self, model, inputs, *others, **more):
        if not before:
            before.update(copy.deepcopy(self.model.state_dict()))
        batches.append(copy.deepcopy(inputs))
        return compute(self, model, inputs, *others, **more)

    def note_gradients(self, args, state, control, **others):
        seen.update({n: p.grad.clone() for n, p in self.trainer.model.named_parameters()})

    monkeypatch.setattr(trainer.AugSelfTrainer, "compute_loss", note_batch)
    monkeypatch.setattr(trainer._MethodSteps, "on_pre_optimizer_step", note_gradients)
    done = []
    monkeypatch.setattr(pretraining, "_publish", lambda s, t, *_: done.append(t.model))
    pretrain(settings)
    (model,) = done
    assert len(batches) == 2
    model.load_state_dict(before)
    model.train().zero_grad()
    for batch in batches:
        batch.pop("skipped")
        assert len(batch["labels"]) == 4
        (model(**batch)["loss"] / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, msg=name)


@pytest.fixture
def few_steps(settings, small_options, monkeypatch):
    """Make some steps of a small method, at a size at which bf16 is allowed: its trainer."""
    done = []
    monkeypatch.setattr(pretraining, "_publish", lambda s, t, *_: done.append(t))

    def run(method, steps=4, **arguments):
        given = {
            "method": method,
            "size": LEAST_BF16,
            "method_options": small_options[method],
            "output": settings.output.with_name(f"run-{len(done)}"),
            "arguments": {**settings.arguments, "max_steps": steps, **arguments},
        }
        pretrain(dataclasses.replace(settings, **given))
        return done[-1]

    return run


@pytest.mark.parametrize("matcher", ["off", "joint"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_bf16(few_steps, settings, method, matcher):
    """Weights stay float32; the losses are finite and logged."""
    object.__setattr__(settings, "matcher", matcher)
    run = few_steps(method, steps=2, bf16=True)
    rows = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert len(rows) == 2
    assert all(math.isfinite(loss) for loss in rows)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_bf16_refuses_views_whose_gradients_would_be_wrong(settings):
    settings.arguments.update(bf16=True, use_cpu=True)
    small = dataclasses.replace(settings, size=LEAST_BF16 - 1)
    with pytest.raises(UsageError, match="bf16=True on a CPU needs --size 32 or more, not 31"):
        training_arguments(small)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "matcher"), [*((m, "off") for m in METHODS), ("simclr", "joint")]
)
def test_a_compiled_method_loses_as_the_plain_one_does(few_steps, settings, method, matcher):
    """The same steps by torch.compile; checkpoints name their weights alike."""
    object.__setattr__(settings, "matcher", matcher)
    plain = few_steps(method)
    compiled = few_steps(
        method,
        torch_compile=True,
        torch_compile_backend="aot_eager",
        save_strategy="steps",
        save_steps=4,
    )
    losses, others = (
        [row["loss"] for row in run.state.log_history if "loss" in row] for run in (plain, compiled)
    )
    assert others == pytest.approx(losses, rel=1e-3)
    saved = load_file(Path(compiled.args.output_dir) / "checkpoint-4/model.safetensors")
    assert set(saved) == set(plain.model.state_dict())
