"""transformers' TrainingArguments of a run, every field of them decided by somebody.

Each is in one of three tables: DECIDED by an option of ours or by what our trainer needs,
CHANGEABLE by --set, or REFUSED. A test compares them with the installed transformers, so that a new
field waits for a decision instead of doing something nobody looked at.
"""

from __future__ import annotations

import difflib
import logging
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from augself_hub.errors import MissingExtra, UsageError
from augself_hub.lazy import installed
from training.run.rules import Rule
from training.run.settings import Settings

log = logging.getLogger(__name__)

# Of a 3x3 convolution of stride 2 on a map of one pixel, which a ResNet has below this many pixels,
# torch 2.14 reads the bf16 weight gradient from memory nobody wrote, on CPUs with AVX512_BF16.
LEAST_BF16 = 32

DECIDED = {  # what to give instead, or why it is as it is
    "output_dir": "give --output",
    "per_device_train_batch_size": "give --batch-size",
    "num_train_epochs": "give --epochs",
    "learning_rate": "give --base-lr",
    "weight_decay": "give --weight-decay",
    "optim": "give --optimizer",
    "lr_scheduler_type": "give --schedule",
    "warmup_steps": "give --warmup-epochs",
    "seed": "give --seed",
    "dataloader_num_workers": "give --workers",
    "report_to": "give --report-to",
    "resume_from_checkpoint": "give --resume",
    "remove_unused_columns": "the batches are ours and have no columns",
    "dataloader_drop_last": "an epoch is whole batches",
    "logging_nan_inf_filter": "a loss that is not a number stops the run",
    "disable_tqdm": "the progress bar is ours",
}

_TRUTH, _COUNT, _WORD = Rule(bool), Rule(int, 1), Rule(str)
_SHARE = Rule(float, 0, 1)
CHANGEABLE = {
    "max_steps": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "max_grad_norm": Rule(float, 0),
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": Rule(float, 0, open=True),
    "bf16": _TRUTH,
    "fp16": _TRUTH,
    "tf32": _TRUTH,
    "torch_compile": _TRUTH,
    "torch_compile_backend": _WORD,
    "torch_compile_mode": Rule(
        str,
        choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    ),
    "torch_empty_cache_steps": _COUNT,
    "full_determinism": _TRUTH,
    "use_cpu": _TRUTH,
    "logging_strategy": Rule(str, choices=("no", "steps", "epoch")),
    "logging_steps": Rule(float, 0, open=True),
    "logging_first_step": _TRUTH,
    "log_level": Rule(str, choices=("debug", "info", "warning", "error", "critical", "passive")),
    "run_name": _WORD,
    "project": _WORD,
    "save_strategy": Rule(str, choices=("no", "steps", "epoch")),
    "save_steps": Rule(float, 0, open=True),
    "save_total_limit": Rule(int, 2),
    "dataloader_pin_memory": _TRUTH,
    "dataloader_persistent_workers": _TRUTH,
    "dataloader_prefetch_factor": _COUNT,
    "dataloader_multiprocessing_context": Rule(str, choices=("fork", "spawn", "forkserver")),
    "ddp_find_unused_parameters": _TRUTH,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_broadcast_buffers": _TRUTH,
    "ddp_backend": Rule(str, choices=("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl")),
    "ddp_timeout": _COUNT,
}

_MONITOR = "the monitor measures the run: give --monitor-every and --held-out"
_HUB = "a model is published by --push-to-hub, --private and the token of `hf auth login`"
_WHOLE = "every process holds the whole model, and so do checkpoints"
_TWICE = "it would run batch norm twice: for less memory give gradient_accumulation_steps"
_TEXTS = "it is about language models"
_ORDER = "the order of images is --seed's alone, so that a resumed run sees what it would have seen"
_NO_LABELS = "the losses are the method's: give --method-option"
_ONE_LOG = "the first process alone logs"
REFUSED = {
    **dict.fromkeys(
        (
            *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size"),
            *("prediction_loss_only", "eval_on_start", "eval_do_concat_batches"),
            *("eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics"),
            *("batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "load_best_model_at_end"),
            *("metric_for_best_model", "greater_is_better", "do_train", "do_eval", "do_predict"),
        ),
        _MONITOR,
    ),
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
            *("hub_always_push", "hub_revision"),
        ),
        _HUB,
    ),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), _WHOLE),
    **dict.fromkeys(
        (
            *("activation_checkpointing", "activation_checkpointing_kwargs"),
            *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
        ),
        _TWICE,
    ),
    **dict.fromkeys(
        (
            *("average_tokens_across_devices", "include_num_input_tokens_seen", "use_cache"),
            *("use_liger_kernel", "liger_kernel_config", "neftune_noise_alpha"),
            *("train_sampling_strategy", "length_column_name"),
        ),
        _TEXTS,
    ),
    **dict.fromkeys(("data_seed", "ignore_data_skip", "dataloader_in_order"), _ORDER),
    **dict.fromkeys(("label_smoothing_factor", "label_names"), _NO_LABELS),
    **dict.fromkeys(("log_level_replica", "log_on_each_node"), _ONE_LOG),
    "optim_args": "the optimizers take adam_beta1, adam_beta2 and adam_epsilon",
    "optim_target_modules": "every weight is trained",
    "lr_scheduler_kwargs": "give --schedule and --warmup-epochs",
    "auto_find_batch_size": "a batch is what --batch-size says: give gradient_accumulation_steps",
    "accelerator_config": "gradient_accumulation_steps shares a batch out",
    "save_only_model": "a run could not be resumed: its optimizer and schedule would begin again",
    "save_on_each_node": "checkpoints lie in --output, which every node shares",
    "enable_jit_checkpoint": "SIGTERM ends a run after a checkpoint as it is",
    "restore_callback_states_from_checkpoint": "no callback of ours has one",
    "ddp_static_graph": "BYOL, MoCo and SwAV change what is trained while they run",
    "local_rank": "torchrun gives it",
    "debug": "use torch.autograd.set_detect_anomaly in a program of your own",
    "skip_memory_metrics": "use torch.cuda.memory_summary in a program of your own",
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "set TRACKIO_SPACE_ID and its like in the environment",
    ),
}

_NAMING = ("wandb", "trackio", "comet_ml", "mlflow", "swanlab")  # reporters that read run_name


def training_arguments(settings: Settings) -> TrainingArguments:
    """transformers' TrainingArguments of a run; every process has left its checks when it returns.

    Where --set does not give them, `set_intervals` fills in the steps between logs and checkpoints.

    Raises:
        UsageError: a `--set` field that is decided elsewhere, refused or unknown, or whose value is
            wrong or would have no effect; a batch that cannot be shared out.
    """
    given = {name: _checked(name, value) for name, value in settings.arguments.items()}
    cuda = torch.cuda.is_available()
    changeable = {
        "use_cpu": not cuda,
        "dataloader_persistent_workers": settings.workers > 0,
        "dataloader_pin_memory": cuda,
        "max_grad_norm": 0.0,
        "logging_strategy": "steps",
        "save_strategy": "steps",
        "save_total_limit": 2,
    }
    decided = {
        "output_dir": str(settings.output),
        "learning_rate": settings.base_lr * settings.batch_size / 256,
        "weight_decay": settings.weight_decay,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,  # shared out below
        "dataloader_num_workers": settings.workers,
        "seed": settings.seed,
        "remove_unused_columns": False,
        "dataloader_drop_last": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": list(settings.report_to),
    }
    _check_reporters(settings.report_to)
    try:
        fields: dict[str, Any] = {**decided, **changeable, **given}
        arguments = TrainingArguments(**fields)
    except ImportError as error:  # transformers' own words name a package of its own to install
        if installed("accelerate"):
            raise
        raise MissingExtra("accelerate", "train") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"--set: {error}") from error
    for name in given:
        if need := _unmet(name, settings, arguments):
            raise UsageError(f"--set {name} would have no effect: it needs {need}")
    if arguments.bf16 and arguments.use_cpu and settings.size < LEAST_BF16:
        raise UsageError(
            f"--set bf16=True on a CPU needs --size {LEAST_BF16} or more, not {settings.size}: use "
            "a larger --size or leave bf16 out"
        )
    arguments.per_device_train_batch_size = _share(settings, arguments)
    arguments.distributed_state.wait_for_everyone()
    return arguments


def on_one_gpu(arguments: TrainingArguments) -> None:
    """Where one process sees several GPUs, make transformers' trainer use the first.

    It would wrap the model in nn.DataParallel: as many batches as GPUs at a time, cut up by rows,
    which parts the two views of an image.
    """
    if arguments.n_gpu > 1:
        log.warning(
            "%d GPUs are here and one is used: augself pretrain uses all where torchrun "
            "--nproc-per-node %d starts it",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1


def set_intervals(arguments: TrainingArguments, settings: Settings, steps: int) -> None:
    """Unless --set says it: a log every 50 steps and a checkpoint an epoch, of so many `steps`."""
    if "logging_steps" not in settings.arguments:
        arguments.logging_steps = max(1, min(50, steps))
    if "save_steps" not in settings.arguments:
        arguments.save_steps = max(1, steps)


def _checked(name: str, value: Any) -> Any:
    """The value of a --set field, by the three tables."""
    if name in CHANGEABLE:
        checked = CHANGEABLE[name].checked(f"--set {name}", value)
        if name == "torch_compile_backend":
            known = torch._dynamo.list_backends(exclude_tags=())
            return Rule(str, choices=tuple(known)).checked(f"--set {name}", checked)
        return checked
    if name in DECIDED:
        raise UsageError(f"--set {name} would have no effect: {DECIDED[name]}")
    if name in REFUSED:
        raise UsageError(f"--set {name} cannot be changed: {REFUSED[name]}")
    if name in TrainingArguments.__dataclass_fields__:
        raise UsageError(f"--set {name} is newer than this version, which was not tried with it")
    close = difflib.get_close_matches(name, CHANGEABLE, n=3) or sorted(CHANGEABLE)
    raise UsageError(f"--set {name}: there is no such field; there are {', '.join(close)}")


def _unmet(name: str, settings: Settings, arguments: TrainingArguments) -> str | None:
    """What a field needs to be read at all, where that is not given."""
    reporters = set(settings.report_to)
    needs = {
        "--optimizer adamw": (
            settings.optimizer == "adamw",
            ("adam_beta1", "adam_beta2", "adam_epsilon"),
        ),
        "--workers of 1 or more": (
            settings.workers > 0,
            (
                *("dataloader_persistent_workers", "dataloader_prefetch_factor"),
                "dataloader_multiprocessing_context",
            ),
        ),
        "logging_strategy=steps": (arguments.logging_strategy == "steps", ("logging_steps",)),
        "save_strategy=steps": (arguments.save_strategy == "steps", ("save_steps",)),
        "checkpoints": (arguments.save_strategy != "no", ("save_total_limit",)),
        "a GPU": (
            arguments.device.type != "cpu",
            ("fp16", "tf32", "dataloader_pin_memory", "torch_empty_cache_steps"),
        ),
        "--report-to " + " or ".join(_NAMING): (
            bool(set(_NAMING) & reporters),
            ("run_name",),
        ),
        "--report-to trackio": ("trackio" in reporters, ("project",)),
        "several processes": (
            arguments.world_size > 1,
            (
                *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
                *("ddp_backend", "ddp_timeout"),
            ),
        ),
    }
    return next((need for need, (met, names) in needs.items() if name in names and not met), None)


def _check_reporters(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise UsageError(f"unknown reporter {name!r}: use none, {known}")
        if name not in get_available_reporting_integrations():
            raise UsageError(f"--report-to {name}: its package is not installed")


def _share(settings: Settings, arguments: TrainingArguments) -> int:
    """What one process takes of a batch at a time."""
    batch, steps = settings.batch_size, arguments.gradient_accumulation_steps
    processes: int = arguments.world_size
    share, rest = divmod(batch, processes * steps)
    if rest:
        raise UsageError(
            f"--batch-size {batch} cannot be shared out to {processes} processes in "
            f"{steps} accumulated parts: give a multiple of {processes * steps}"
        )
    if share < 2:
        raise UsageError(
            f"--batch-size {batch} is {share} image at a time: batch norm and feature_std "
            f"need 2, so give {2 * processes * steps} or more"
        )
    return share
