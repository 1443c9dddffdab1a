"""What is said of a wrong key or value: its name, what was given, and what was probably meant."""

from __future__ import annotations

import difflib
from typing import Any

from dali_rsb.config.sections import all_keys, sections
from dali_rsb.config.yaml_text import short

# What timm, torchvision and torch call a key, where no spelling leads to ours.
SYNONYMS = {
    "learning_rate": "optimizer.lr",
    "opt": "optimizer.name",
    "opt_betas": "optimizer.betas",
    "opt_eps": "optimizer.eps",
    "wd": "optimizer.weight_decay",
    "batch": "optimizer.batch_size",
    "b": "optimizer.batch_size",
    "train_batch_size": "optimizer.batch_size",
    "total_batch_size": "optimizer.batch_size",
    "max_norm": "optimizer.clip_grad",
    "grad_clip": "optimizer.clip_grad",
    "clip_grad_norm": "optimizer.clip_grad",
    "grad_accum_steps": "run.batch_per_device",
    "accumulation": "run.batch_per_device",
    "micro_batch": "run.batch_per_device",
    "img_size": "augment.size",
    "input_size": "augment.size",
    "image_size": "augment.size",
    "train_crop_size": "augment.size",
    "val_crop_size": "evaluation.size",
    "val_img_size": "evaluation.size",
    "crop_pct": "evaluation.crop_ratio",
    "val_resize_size": "evaluation.crop_ratio",
    "validation_batch_size": "evaluation.batch_per_device",
    "aa": "augment.randaugment",
    "auto_augment": "augment.randaugment",
    "aug_repeats": "augment.repeats",
    "ra_reps": "augment.repeats",
    "ra_sampler": "augment.repeats",
    "train_interpolation": "augment.interpolation",
    "mixup_alpha": "mixing.mixup",
    "cutmix_alpha": "mixing.cutmix",
    "mixup_prob": "mixing.prob",
    "mixup_switch_prob": "mixing.switch_prob",
    "mixup_mode": "mixing.mode",
    "mixup_off_epoch": "mixing.off_epoch",
    "label_smoothing": "loss.smoothing",
    "bce_loss": "loss.name",
    "bce_target_thresh": "loss.target_threshold",
    "criterion": "loss.name",
    "drop": "model.dropout",
    "drop_rate": "model.dropout",
    "drop_path_rate": "model.drop_path",
    "stochastic_depth": "model.drop_path",
    "arch": "model.name",
    "pretrained": "model.weights",
    "initial_checkpoint": "model.weights",
    "warmup_lr_init": "schedule.warmup_lr",
    "lr_min": "schedule.min_lr",
    "eta_min": "schedule.min_lr",
    "lr_warmup_epochs": "schedule.warmup_epochs",
    "sched": "schedule.name",
    "T_0": "schedule.cycle_epochs",
    "T_mult": "schedule.cycle_growth",
    "lr_cycle_mul": "schedule.cycle_growth",
    "lr_cycle_decay": "schedule.cycle_decay",
    "num_epochs": "schedule.epochs",
    "model_ema": "ema.decay",
    "model_ema_decay": "ema.decay",
    "data_dir": "data.train",
    "data_path": "data.train",
    "train_dir": "data.train",
    "val_dir": "data.val",
    "workers": "data.threads",
    "num_workers": "data.threads",
    "j": "data.threads",
    "prefetch_factor": "data.prefetch",
    "torchcompile": "run.compile",
    "output": "run.dir",
    "output_dir": "run.dir",
    "experiment": "run.dir",
    "log_interval": "run.log_every",
    "print_freq": "run.log_every",
    "recovery_interval": "run.checkpoint_every",
    "max_iters": "run.max_steps",
    "max_train_steps": "run.max_steps",
}

MISSING_SOURCE = (
    "--from is missing: give the weights to begin with, as --from timm:NAME.TAG, "
    "--from runs/NAME or --from FILE"
)


def suggest(key: str) -> str:
    """'; did you mean X?' with the key that was probably meant, or nothing."""
    keys = all_keys()
    name = key.rpartition(".")[2].replace("-", "_")
    # A key without its section, or in the wrong one, is nearer than any misspelling.
    same_name = [k for k in keys if k.partition(".")[2] == name]
    if not same_name and name in SYNONYMS:
        same_name = [SYNONYMS[name]]
    if not same_name and "." not in key:
        # A misspelt name without its section.
        names = {k.partition(".")[2]: k for k in keys}
        same_name = [
            names[match] for match in difflib.get_close_matches(name, names, n=1, cutoff=0.75)
        ]
    nearest = same_name or difflib.get_close_matches(key, [*keys, *sections()], n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def describe(problem: Any) -> str:
    """One of pydantic's problems in a line: the key, what is wrong, what was given."""
    parts = [str(part) for part in problem["loc"] if not str(part).startswith("function")]
    key = ".".join(part if len(part) <= 40 else part[:37] + "..." for part in parts)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{suggest(key)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key}: {message[0].lower()}{message[1:]}, got {short(problem['input'])}"
