"""The configuration: YAML and `section.key=value` read into one typed, frozen tree.

Every key has its meaning beside it. Unknown keys, wrong types and combinations that cannot work
are `UserError`s that name the key and the mend. Only the commands and the trainer see the tree;
other parts are handed the values they need.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD, PAIR_BLOCK
from dali_rsb.draws.policy import parse_tokens
from dali_rsb.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
# YAML has neither tuples nor paths: these are converted, everything else is taken strictly.
FilePath = Annotated[Path, Field(strict=False)]
Pair = Annotated[tuple[float, float], Field(strict=False)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]


class Section(BaseModel):
    """A part of the configuration: frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    # Training images: a folder of class folders, a folder of tar shards (python -m dali_rsb.pack),
    # or a text file with PATH, a tab and LABEL in each line.
    train: FilePath | None = None
    val: FilePath | None = None  # the same for validation
    digits: FilePath | None = None  # write the quickstart digits here and train on them
    index: FilePath | None = None  # folder for the dataset indices; default: beside the images
    # The next six, where not given: what `python -m dali_rsb.tune` found for this machine and
    # these images; where nobody has tuned, what stands in brackets.
    threads: Positive | None = None  # DALI threads a process (its share of the CPUs)
    prefetch: Annotated[int, Field(ge=2)] | None = None  # runs of the DALI graph under way (3)
    pipelines: Positive | None = None  # copies of it that share the threads (GPU: 1; CPU: 2)
    batches_per_run: Positive | None = None  # that share one (GPU: 1; CPU: up to 1,024 images)
    decode: Literal["roi", "full"] | None = None  # the crop window or the whole image (roi)
    hw_decoder_load: Fraction | None = None  # share of images for the GPU's JPEG engine (0.65)
    on_bad_image: Literal["substitute", "raise"] = "substitute"
    max_bad_fraction: Fraction = 0.001  # share of undecodable images above which training stops
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD


class Model(Section):
    name: str = "resnet50"
    num_classes: Positive = 1000
    drop_path: Fraction = 0.0  # stochastic depth: rate of the last block, linear from 0
    dropout: Fraction = 0.0  # before the classifier
    weights: FilePath | None = None  # initial weights: a checkpoint or a state dict


class Augment(Section):
    size: Positive = 224  # side of the training images, in pixels
    scale: Pair = (0.08, 1.0)  # RandomResizedCrop: share of the image area
    ratio: Pair = (3 / 4, 4 / 3)  # RandomResizedCrop: width / height
    hflip: Fraction = 0.5
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    randaugment: str | None = None  # timm's string, e.g. rand-m7-mstd0.5-inc1
    repeats: Positive = 1  # repeated augmentation: copies of an image in an epoch
    copies: Literal["spread", "together"] = "spread"  # copies over processes, or on one


class Mixing(Section):
    mixup: NonNegative = 0.0  # alpha; 0 is off
    cutmix: NonNegative = 0.0  # alpha; 0 is off
    prob: Fraction = 1.0
    switch_prob: Fraction = 0.5  # of CutMix, where both are on
    mode: Literal["batch", "pair", "elem"] = "batch"
    group_size: Positive = 512  # samples with one lambda in batch mode; at most one update's
    off_epoch: Count = 0  # epoch from which nothing is mixed; 0 is never


class Loss(Section):
    name: Literal["bce", "ce"] = "bce"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_threshold: Annotated[float, Field(ge=0, lt=1)] | None = (
        None  # bce: targets above it count as 1, others as 0
    )


class Optimizer(Section):
    name: Literal["lamb", "sgd", "adamw"] = "lamb"
    backend: Literal["auto", "triton", "foreach", "apex"] = "auto"  # lamb; auto: what the GPU can
    batch_size: Positive = 2048  # global: samples of one update
    lr: Annotated[float, Field(gt=0)] = 5e-3  # peak
    weight_decay: NonNegative = 0.02
    betas: Pair | None = None
    eps: Annotated[float, Field(gt=0)] | None = None
    momentum: Fraction | None = None  # sgd
    nesterov: bool = False  # sgd
    clip_grad: Annotated[float, Field(gt=0)] | None = None  # norm; lamb also clips to 1 itself


class Schedule(Section):
    epochs: Positive = 100
    warmup_epochs: NonNegative = 5
    warmup_lr: NonNegative = 1e-4
    min_lr: NonNegative = 1e-6


class Ema(Section):
    decay: Annotated[float, Field(ge=0, lt=1)] | None = None  # None: no EMA
    warmup: Literal["none", "timm", "tf"] = "none"


class Evaluation(Section):
    size: Positive = 224  # side of the centre crop, in pixels
    crop_ratio: Share = 0.95  # size / shorter edge after the resize
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    batch_per_device: Positive = 256
    every: Positive = 1  # epochs between evaluations; the last epoch always has one


class Run(Section):
    dir: FilePath | None = None  # run folder; default runs/NAME, with a number if that is taken
    device: Literal["cuda", "cpu", "auto"] = "cuda"  # auto: a GPU if there is one
    batch_per_device: Positive | None = None  # default: what fits (see README, "Batch size")
    amp: Literal["auto", "fp16", "bf16", "none"] = "auto"  # auto: by the GPU; none on a CPU
    compile: bool = False  # torch.compile
    cuda_graph: bool = False  # replay forward and backward pass; for one process on a GPU
    warm_up: bool = True  # reach DALI's peak memory before the first update, by the largest batches
    seed: Count = 0
    log_every: Positive = 50  # updates between log lines
    checkpoint_every: Positive | None = None  # updates between checkpoints within an epoch
    max_steps: Positive | None = None  # stop after so many updates in all
    max_skipped_steps: Positive = 20  # updates in a row with inf or NaN: more stop the run


class Config(Section):
    """A whole run. `name` is taken from the file; the sections stand in the order of the data."""

    name: str
    data: Data = Data()
    augment: Augment = Augment()
    mixing: Mixing = Mixing()
    model: Model = Model()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    ema: Ema = Ema()
    evaluation: Evaluation = Evaluation()
    run: Run = Run()

    @model_validator(mode="after")
    def _check_combinations(self) -> Config:
        if self.data.digits is not None and (self.data.train or self.data.val):
            raise ValueError("data.digits: give either data.digits or data.train and data.val")
        if self.loss.target_threshold is not None and self.loss.name != "bce":
            raise ValueError("loss.target_threshold: only loss.name=bce has a threshold")
        if self.optimizer.nesterov and not self.optimizer.momentum:
            raise ValueError("optimizer.nesterov: needs optimizer.momentum above 0")
        if self.optimizer.backend != "auto" and self.optimizer.name != "lamb":
            raise ValueError(
                "optimizer.backend: only optimizer.name=lamb has backends; leave it out"
            )
        if self.schedule.warmup_epochs > self.schedule.epochs:
            raise ValueError("schedule.warmup_epochs: must not exceed schedule.epochs")
        if self.mixes and self.run.batch_per_device and self.run.batch_per_device % PAIR_BLOCK:
            raise ValueError(
                f"run.batch_per_device: must be a multiple of {PAIR_BLOCK} where mixing is on"
            )
        if self.augment.randaugment is not None:
            parse_tokens(self.augment.randaugment)
        for key in ("scale", "ratio"):
            low, high = getattr(self.augment, key)
            if not 0 < low <= high:
                raise ValueError(f"augment.{key}: must be [low, high] with 0 < low <= high")
        return self

    @property
    def mixes(self) -> bool:
        return (self.mixing.mixup > 0 or self.mixing.cutmix > 0) and self.mixing.prob > 0


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, then apply `section.key=value` overrides in order.

    Raises:
        UserError: the file cannot be read, or a key, type or combination is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a file in configs/") from error
    try:
        tree = yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold sections such as `data:` and `model:`")
    return override_config({"name": path.stem, **tree}, overrides)


def override_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Build the typed tree from plain dictionaries (left as they are) and overrides.

    Raises:
        UserError: a key, type or combination is wrong.
    """
    tree = copy.deepcopy(tree)
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("; ".join(_describe(problem) for problem in error.errors())) from error


class _Yaml(yaml.SafeLoader):
    """YAML with 1e-4 read as a number, as everybody expects (YAML 1.1 wants 1.0e-4)."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot:
        raise UserError(f"'{override}': write overrides as section.key=value{_suggest(key)}")
    values = tree.setdefault(section, {})
    if not isinstance(values, dict):
        raise UserError(f"{section} must be a section with keys, not {values!r}")
    try:
        values[name] = yaml.load(value, _Yaml)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: cannot read the value '{value}'; quote it") from error


def _sections() -> dict[str, type[Section]]:
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _all_keys() -> list[str]:
    return [
        f"{section}.{key}" for section, model in _sections().items() for key in model.model_fields
    ]


def _suggest(key: str) -> str:
    """', did you mean X?' with the nearest valid key, or nothing."""
    keys = _all_keys()
    # A key without its section, or in the wrong one, is nearer than any misspelling.
    same_name = [k for k in keys if k.partition(".")[2] == key.rpartition(".")[2]]
    nearest = same_name or difflib.get_close_matches(key, [*keys, *_sections()], n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _describe(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function"))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggest(key)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"
