"""The configuration as a typed, frozen tree: every key with its type, bounds, default and meaning.

The descriptions are what `dali-rsb help` prints. Bounds are far beyond any sensible value; they
keep a slip of the finger from becoming a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dali_rsb.constants import (
    HUB_PREFIX,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PIXELS,
    PAIR_BLOCK,
    TIMM_PREFIX,
)
from dali_rsb.draws.policy import parse_tokens


def _absolute(path: Path) -> Path:
    """A path as it is meant where the configuration is read: `~` is home, relative to here."""
    if "\0" in str(path):
        raise ValueError("a path holds no NUL character")
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(
            f"there is no home directory for {path.parts[0]}; write the path out"
        ) from None


def _auto_if_none(value: object) -> object:
    """Checkpoints of earlier versions hold none where auto is meant."""
    return "auto" if value is None else value


def _weights_source(source: str) -> str:
    """A source of weights as it is meant where the configuration is read."""
    if source.startswith((TIMM_PREFIX, HUB_PREFIX)):
        return source
    if not source:
        raise ValueError("give a path, timm:NAME.TAG or hf:OWNER/NAME")
    return str(_absolute(Path(source)))


def _one_or_more(value: object) -> object:
    """A single word where a list is meant."""
    return (value,) if isinstance(value, str) else value


def _own_name(name: str) -> str:
    if not name or name.startswith(".") or any(c in "/\\" or not c.isprintable() for c in name):
        raise ValueError("give a printable name without slashes that begins with no dot")
    return name


Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0, le=10**9)]
Count = Annotated[int, Field(ge=0, le=10**9)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Side = Annotated[int, Field(gt=0, le=8192)]  # of a square image, in pixels
DeviceBatch = Annotated[int, Field(gt=0, le=65536)]
# YAML has neither tuples nor paths: these are converted, everything else is taken strictly.
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_absolute)]
WeightsSource = Annotated[str, AfterValidator(_weights_source)]
ClassNames = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Labels = Annotated[
    tuple[Label, ...],
    Field(strict=False),
    BeforeValidator(_one_or_more),
]
TrackerNames = Annotated[
    tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...],
    Field(strict=False),
    BeforeValidator(_one_or_more),
]
Pair = Annotated[tuple[float, float], Field(strict=False)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]


class Section(BaseModel):
    """A part of the configuration: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    """Which images, and how they are loaded."""

    train: FilePath | None = Field(
        None,
        description="training images: a folder of class folders, a folder of tar shards or a "
        "pattern such as /shards/train-{000..009}.tar, or a text file with PATH, a tab and LABEL "
        "in each line",
    )
    val: FilePath | None = Field(None, description="the same for validation")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="without data.val: share of data.train that is kept for validation, chosen by "
        "a hash of each file's name, so the same in every run",
    )
    digits: FilePath | None = Field(
        None, description="write the quickstart's digits into this folder and train on them"
    )
    index: FilePath | None = Field(
        None, description="folder for the dataset indices; default: beside the images"
    )
    class_order: Literal["plain", "natural"] = Field(
        "plain", description="order of the classes, as ImageFolder; natural: as timm, 2 before 10"
    )
    class_level: Literal["top", "leaf"] | None = Field(
        None,
        description="which of nested folders names the class: the top one, as ImageFolder, or the "
        "innermost, as timm; none: nested folders are refused",
    )
    classes: FilePath | ClassNames | None = Field(
        None,
        description="all class names in their order: a list, or a text file with one in each line; "
        "classes without images are legal then",
    )
    label_key: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="shards: key of the label in KEY.json, in place of KEY.cls"
    )
    sampling: Literal["all", "balanced"] = Field(
        "all",
        description="images of an epoch: each once, or all classes equally often, which repeats "
        "images of rare classes and leaves out others",
    )
    exclude: FilePath | None = Field(
        None,
        description="text file with an image to leave out in each line, as dali-rsb verify writes",
    )
    allow_overlap: bool = Field(
        False, description="let training and validation share files, as to overfit a few on purpose"
    )
    # Where the next six are not given (decode: auto): what `dali-rsb tune` found for this machine
    # and these images, else the default in brackets.
    threads: Annotated[int, Field(gt=0, le=4096)] | None = Field(
        None, description="DALI threads of a process (its share of the CPUs)"
    )
    prefetch: Annotated[int, Field(ge=2, le=1024)] | None = Field(
        None, description="runs of the DALI pipeline in flight (3)"
    )
    pipelines: Annotated[int, Field(gt=0, le=1024)] | None = Field(
        None, description="DALI pipelines that share the threads (GPU: 1; CPU: 2)"
    )
    batches_per_run: Annotated[int, Field(gt=0, le=65536)] | None = Field(
        None, description="batches in one run of a DALI pipeline (GPU: 1; CPU: up to 1,024 images)"
    )
    decode: Annotated[
        Literal["auto", "host", "full", "hybrid", "roi"], BeforeValidator(_auto_if_none)
    ] = Field(
        "auto",
        description="who decodes for a GPU: host, the CPUs, crop windows alone; full, the GPU, "
        "whole images; hybrid, the GPU a share of each batch; roi, the GPU, crop windows; auto: "
        "what tuning found, else host. Without a GPU, full decodes whole images, else crop windows",
    )
    hw_decoder_load: Fraction | None = Field(
        None,
        description="share of the images for the GPU's JPEG engine, in hybrid for the GPU (0.65)",
    )
    on_bad_image: Literal["substitute", "raise"] = Field(
        "substitute", description="put the next image in the place of an undecodable one, or stop"
    )
    max_bad_fraction: Fraction = Field(
        0.001, description="share of undecodable images above which training stops"
    )
    max_pixels: Positive = Field(
        MAX_PIXELS, description="pixels of an image above which it counts as undecodable"
    )
    mean: Triple = Field(IMAGENET_MEAN, description="mean of the channels, of values in [0, 1]")
    std: Triple = Field(IMAGENET_STD, description="deviation of the channels, likewise")


class Augment(Section):
    """Augmentation of the training images."""

    size: Side = Field(224, description="side of the training images in pixels")
    scale: Pair = Field((0.08, 1.0), description="RandomResizedCrop: range of the area's share")
    ratio: Pair = Field((3 / 4, 4 / 3), description="RandomResizedCrop: range of width / height")
    hflip: Fraction = Field(0.5, description="probability of mirroring left to right")
    interpolation: Literal["random", "bilinear", "bicubic"] = Field(
        "random", description="filter of the resize; random: one of the two for each image"
    )
    randaugment: str | None = Field(
        None, description="RandAugment in timm's notation, such as rand-m7-mstd0.5-inc1"
    )
    backend: Literal["auto", "dali", "triton", "numba"] = Field(
        "auto",
        description="who computes RandAugment: DALI, or kernels behind it; auto: Triton's on a "
        "GPU, Numba's on a CPU, if they work there",
    )
    random_erasing: Fraction = Field(
        0.0, description="probability of erasing boxes of an image, after mixing"
    )
    erase_mode: Literal["const", "rand", "pixel"] = Field(
        "pixel", description="what fills the boxes: the mean colour, a random one, or noise"
    )
    erase_count: Annotated[int, Field(gt=0, le=100)] = Field(
        1, description="most boxes of an image, which share the area of one"
    )
    repeats: Annotated[int, Field(gt=0, le=1000)] = Field(
        1, description="repeated augmentation: copies of an image in an epoch"
    )
    copies: Literal["spread", "together"] = Field(
        "spread", description="copies of an image on different processes, or on one"
    )


class Mixing(Section):
    """Mixup and CutMix."""

    mixup: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="alpha of mixup's Beta distribution; 0 is off"
    )
    cutmix: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="alpha of CutMix's Beta distribution; 0 is off"
    )
    prob: Fraction = Field(1.0, description="probability of mixing at all")
    switch_prob: Fraction = Field(0.5, description="probability of CutMix where both are on")
    mode: Literal["batch", "pair", "elem"] = Field(
        "batch", description="who shares a draw: a group of samples, two partners, or nobody"
    )
    group_size: Positive = Field(
        512, description="samples that share a draw in batch mode; at most one update's"
    )
    off_epoch: Count = Field(0, description="epoch from which nothing is mixed; 0 is never")


class Model(Section):
    """Which model, and its initial weights."""

    name: str = Field("resnet50", description="one of ours, or timm:NAME for any model of timm")
    num_classes: Positive = Field(1000, description="number of classes")
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="stochastic depth: rate of the last block, rising linearly from 0"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout rate before the classifier"
    )
    weights: WeightsSource | None = Field(
        None,
        description="initial weights: a run, a checkpoint, a file (safetensors or a state dict), a "
        "folder as timm writes it, timm:NAME.TAG, or hf:OWNER/NAME of the Hugging Face hub; "
        "data.mean, data.std, sizes, evaluation.crop_ratio and evaluation.interpolation are theirs "
        "where they are not set",
    )
    head: Literal["auto", "keep", "replace"] = Field(
        "auto",
        description="the classifier of model.weights; auto: keep it where it has the same classes "
        "by their names, else begin a new one",
    )
    freeze: Literal["backbone"] | Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None,
        description="what does not learn: backbone (all but the classifier), or the stem and so "
        "many stages; none: everything learns",
    )
    freeze_norm: bool = Field(
        False, description="leave weights, biases and statistics of all batch norms as they are"
    )


class Loss(Section):
    """The loss."""

    name: Literal["bce", "ce"] = Field(
        "bce", description="binary cross-entropy on every class, or cross-entropy"
    )
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="label smoothing")
    target_threshold: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="bce: targets above it count as 1, others as 0"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: a class counts in inverse proportion to its number of images; for "
        "bce in its positive targets",
    )


class Optimizer(Section):
    """The optimizer and the global batch."""

    name: Literal["lamb", "sgd", "adamw"] = Field("lamb", description="the optimizer")
    backend: Literal["auto", "triton", "foreach", "apex"] = Field(
        "auto", description="implementation of lamb; auto: what the device can do"
    )
    batch_size: Annotated[int, Field(gt=0, le=10**7)] = Field(
        2048, description="global batch: samples of one update, over all devices"
    )
    lr: Annotated[float, Field(gt=0, le=1e6)] = Field(5e-3, description="peak learning rate")
    weight_decay: NonNegative = Field(
        0.02, description="weight decay; biases, norms and what the model names are spared"
    )
    layer_decay: Share | None = Field(
        None, description="a layer's learning rate as a share of the next layer's; none: all alike"
    )
    layer_decay_min_scale: Fraction = Field(
        0.0, description="least share of the peak learning rate that a layer has"
    )
    betas: Pair | None = Field(None, description="lamb, adamw: decay rates of the moments")
    eps: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="lamb, adamw: added to the denominator"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="sgd: momentum")
    nesterov: bool = Field(False, description="sgd: Nesterov's momentum")
    clip_grad: Annotated[float, Field(gt=0, le=1e12)] | None = Field(
        None, description="limit of the gradients' norm; lamb also clips to 1 itself"
    )


class Schedule(Section):
    """Epochs and learning rates: linear warm-up, then half a cosine, or several."""

    name: Literal["cosine", "restarts"] = Field(
        "cosine",
        description="cosine: half a cosine over all epochs; restarts: SGDR, one after another",
    )
    epochs: Annotated[int, Field(gt=0, le=10**6)] = Field(100, description="epochs in all")
    warmup_epochs: NonNegative = Field(5, description="epochs of linear warm-up, of `epochs`")
    warmup_lr: NonNegative = Field(1e-4, description="learning rate of the first update")
    min_lr: NonNegative = Field(1e-6, description="learning rate at the end")
    cycle_epochs: Positive | None = Field(None, description="restarts: epochs of the first cycle")
    cycle_growth: Annotated[int, Field(gt=0, le=100)] = Field(
        1, description="restarts: length of each next cycle, as a multiple of the last one's"
    )
    cycle_decay: Share = Field(
        1.0, description="restarts: peak of each next cycle, as a share of the last one's"
    )

    def cycle_ends(self) -> list[int]:
        """The epochs after which a cycle ends, up to the first that is not before the last epoch.

        Empty without restarts.
        """
        if self.name != "restarts" or self.cycle_epochs is None:
            return []
        ends, length = [self.cycle_epochs], self.cycle_epochs
        while ends[-1] < self.epochs:
            length *= self.cycle_growth
            ends.append(ends[-1] + length)
        return ends


class Ema(Section):
    """Exponential moving average (EMA) of the weights."""

    decay: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="decay of an update; none: no EMA"
    )
    warmup: Literal["none", "timm", "tf"] = Field(
        "none", description="lower decays at the beginning, as timm's ModelEmaV3 or TensorFlow"
    )


class Evaluation(Section):
    """Evaluation on the validation images."""

    size: Side = Field(224, description="side of the centre crop in pixels")
    crop_ratio: Annotated[float, Field(ge=0.01, le=1)] = Field(
        0.95, description="size / shorter edge after the resize"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        "bicubic", description="filter of the resize"
    )
    batch_per_device: DeviceBatch = Field(256, description="images of a batch on one device")
    every: Positive = Field(
        1, description="epochs between evaluations; the last epoch always has one"
    )


class Run(Section):
    """Where and how the run is carried out; nothing here changes what is learnt but the seed."""

    dir: FilePath | None = Field(
        None, description="run folder; default runs/NAME, with a number if that is taken"
    )
    device: Literal["cuda", "cpu", "auto"] = Field(
        "auto", description="auto: a GPU if there is one, else the CPU"
    )
    batch_per_device: DeviceBatch | None = Field(
        None,
        description="images of a batch on one device; default: the largest that divides the "
        "global batch, up to 512 on a GPU (256 with less than 30 GiB) and 64 on a CPU",
    )
    amp: Literal["auto", "fp16", "bf16", "none"] = Field(
        "auto", description="half precision; auto: by the GPU, none on a CPU"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="torch.compile the model; auto: on a GPU. Where it fails, go on without"
    )
    cuda_graph: bool | Literal["auto"] = Field(
        "auto",
        description="replay forward and backward pass as a CUDA graph; auto: one process on a GPU. "
        "Where it fails, go on without",
    )
    warm_up: bool = Field(
        True, description="reach DALI's peak memory before the first update, by the largest batches"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="seed of all draws")
    log_every: Positive = Field(50, description="updates between log lines")
    checkpoint_every: Positive | None = Field(
        None, description="updates between checkpoints within an epoch"
    )
    checkpoint_minutes: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="minutes between checkpoints within an epoch"
    )
    keep_checkpoints: Annotated[int, Field(gt=0, le=1000)] = Field(
        2, description="how many of the last checkpoints stay, beside the best"
    )
    max_checkpoint_failures: Positive = Field(
        5, description="checkpoints in a row that cannot be written before the run stops"
    )
    max_steps: Positive | None = Field(None, description="stop after so many updates in all")
    max_skipped_steps: Positive = Field(
        20, description="updates in a row with inf or NaN in their gradients that stop the run"
    )
    timeout: Annotated[float, Field(ge=1, le=86400)] = Field(
        600, description="seconds for which one of several processes may be silent in training"
    )


class Tracking(Section):
    """Services that take the numbers of a run, beside metrics.csv and metrics.jsonl."""

    trackers: TrackerNames = Field(
        (), description="the services, each an extra of this package; [] for none"
    )
    project: Label = Field(
        "dali_rsb", description="project, or experiment, that the run is filed under"
    )
    name: Label | None = Field(
        None, description="name of the run there; default: that of the run folder"
    )
    tags: Labels = Field((), description="tags of the run there")
    mode: Literal["online", "offline"] = Field(
        "online",
        description="online: to the server that the service is set up for; offline: local files",
    )
    dir: FilePath | None = Field(
        None,
        description="folder of the local files of wandb, trackio and mlflow, which several runs "
        "can share; default: the run folder",
    )
    checkpoints: Literal["none", "end", "all"] = Field(
        "end",
        description="which checkpoints wandb, trackio and mlflow get: none, the last and the best "
        "one when the run ends or stops, or all",
    )


class Config(Section):
    """A whole run. The sections stand in the order of the data."""

    name: Annotated[str, Field(max_length=100), AfterValidator(_own_name)] = Field(
        description="name of the run; default: that of the file"
    )
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
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _check_combinations(self) -> Config:
        for is_wrong, message in self._combinations():
            if is_wrong:
                raise ValueError(message)
        if self.augment.randaugment is not None:
            parse_tokens(self.augment.randaugment)
        return self

    def _combinations(self) -> list[tuple[bool, str]]:
        """What cannot be right together: whether it is so, and the key with the fix."""
        data, optimizer, schedule = self.data, self.optimizer, self.schedule
        betas = optimizer.betas
        return [
            (
                data.digits is not None and bool(data.train or data.val),
                "data.digits: excludes data.train and data.val; for images of your own set "
                "data.digits=null",
            ),
            (
                data.val_fraction is not None and bool(data.val or data.digits),
                "data.val_fraction: is for training without data.val; give one of them",
            ),
            (
                data.sampling == "balanced" and self.augment.repeats > 1,
                "data.sampling: balanced is for augment.repeats=1; set one of them",
            ),
            (
                len({*self.tracking.trackers}) < len(self.tracking.trackers),
                "tracking.trackers: names each service once",
            ),
            (min(data.std) < 1e-6, "data.std: must be above 0 in every channel"),
            (max(map(abs, (*data.mean, *data.std))) > 1e3, "data.mean, data.std: of [0, 1] values"),
            *(
                (
                    not 0 < low <= high <= most,
                    f"augment.{key}: must be [low, high] with 0 < low <= high <= {most:g}",
                )
                for key, (low, high), most in (
                    ("scale", self.augment.scale, 1),
                    ("ratio", self.augment.ratio, 1000),
                )
            ),
            (
                self.loss.target_threshold is not None and self.loss.name != "bce",
                "loss.target_threshold: only loss.name=bce has a threshold",
            ),
            (
                optimizer.nesterov and not optimizer.momentum,
                "optimizer.nesterov: needs optimizer.momentum above 0",
            ),
            (
                self.augment.backend != "auto" and self.augment.randaugment is None,
                "augment.backend: only augment.randaugment has backends; leave it out",
            ),
            (
                optimizer.backend != "auto" and optimizer.name != "lamb",
                "optimizer.backend: only optimizer.name=lamb has backends; leave it out",
            ),
            (
                betas is not None and not all(0 <= beta < 1 for beta in betas),
                "optimizer.betas: must be two numbers from 0 to below 1",
            ),
            (
                schedule.warmup_epochs > schedule.epochs,
                "schedule.warmup_epochs: must not exceed schedule.epochs",
            ),
            (schedule.min_lr > optimizer.lr, "schedule.min_lr: must not exceed optimizer.lr"),
            (
                (schedule.name == "restarts") != (schedule.cycle_epochs is not None),
                "schedule.cycle_epochs: goes with schedule.name=restarts; set both or none",
            ),
            *_restarts(schedule),
            (
                schedule.warmup_epochs > 0 and schedule.warmup_lr > optimizer.lr,
                "schedule.warmup_lr: must not exceed optimizer.lr",
            ),
            (
                self.mixes and bool((self.run.batch_per_device or 0) % PAIR_BLOCK),
                f"run.batch_per_device: must be a multiple of {PAIR_BLOCK} where mixing is on",
            ),
        ]

    @property
    def mixes(self) -> bool:
        """Whether images are mixed at all."""
        return (self.mixing.mixup > 0 or self.mixing.cutmix > 0) and self.mixing.prob > 0


def _restarts(schedule: Schedule) -> list[tuple[bool, str]]:
    """As `Config._combinations`: a run ends with a cycle, and its warm-up is in the first."""
    ends = schedule.cycle_ends()
    if not ends:
        return []
    choices = " or ".join(map(str, ends[-2:]))
    return [
        (
            schedule.warmup_epochs > ends[0],
            "schedule.warmup_epochs: must not exceed schedule.cycle_epochs",
        ),
        (
            schedule.epochs != ends[-1],
            f"schedule.epochs: ends within a cycle, at a high learning rate; set {choices}",
        ),
    ]


def sections() -> dict[str, type[Section]]:
    """The sections by name."""
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def all_keys() -> list[str]:
    """Every key, as section.key."""
    return [f"{name}.{key}" for name, section in sections().items() for key in section.model_fields]
