"""Builds a run from its configuration: the trainer, and the parts that other commands need too.

Here the sections of the configuration are taken apart: every part is handed the values it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dali_rsb import config as cfg
from dali_rsb.constants import PAIR_BLOCK
from dali_rsb.dataset import DatasetIndex
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.erasing import ErasingPolicy
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.draws.order import BatchLayout, EvalLayout, plan_batches
from dali_rsb.draws.randaugment import RandAugmentPolicy, fill_color
from dali_rsb.draws.samples import EvalSamples, TrainSamples, TrainTransform
from dali_rsb.errors import UserError
from dali_rsb.evaluation.validation import Validation
from dali_rsb.loader import builders
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.decoding import describe_decoding
from dali_rsb.loader.loader import Loader
from dali_rsb.loader.rand_augment import describe_randaugment, with_backend
from dali_rsb.loader.settings import DecodeSetting, LoaderSettings
from dali_rsb.models import check_batch_of_one, check_input_sizes, create_model
from dali_rsb.models.classifier import classifier_parameters
from dali_rsb.models.precision import Precision, choose_precision
from dali_rsb.optim import CosineSchedule, Cycles, ModelEma, create_optimizer, describe_backend
from dali_rsb.optim.freezing import freeze
from dali_rsb.run.checkpoint import load_checkpoint
from dali_rsb.run.processes import Processes
from dali_rsb.run.records import TrackingOptions
from dali_rsb.run.trackers.services import check_installed
from dali_rsb.system.cpus import threads_per_process
from dali_rsb.training.datasets import open_datasets
from dali_rsb.training.initial_weights import as_begun, with_preprocessing
from dali_rsb.training.losses import balanced_weights, create_loss
from dali_rsb.training.messages import describe_run
from dali_rsb.training.run_state import Progress, restore_run
from dali_rsb.training.step import TrainStep
from dali_rsb.training.trainer import Trainer, TrainerOptions
from dali_rsb.tuning.settings import resolve_settings
from dali_rsb.weights.fitting import load_initial
from dali_rsb.weights.sources import open_weights
from dali_rsb.weights.weights import Weights
from pipelines.types import HW_DECODER_LOAD

# Device batches where run.batch_per_device is not given. RSB trained ResNet-50 at 224 px with 512
# a card in 32 GB and at 160 px with 512 in 16 GB, so 256 fits any card from 16 GB on.
DEFAULT_BATCH_LARGE_GPU = 512
DEFAULT_BATCH_GPU = 256
DEFAULT_BATCH_CPU = 64
LARGE_GPU_BYTES = 30 * 2**30


def build_trainer(
    config: cfg.Config,
    processes: Processes,
    resume: Path | None = None,
    weights: Weights | None = None,
) -> Trainer:
    """Build a run from its configuration.

    All that can be wrong with the configuration, the data or the checkpoint is found here, before
    the run folder exists.

    Args:
        processes: this process among the run's.
        resume: checkpoint to go on from; the initial weights are not read again then.
        weights: those that `model.weights` names, where they are open already.

    Raises:
        UserError: the parts below name what is wrong and what to set.
    """
    if config.run.cuda_graph is True and (
        processes.world_size > 1 or processes.device.type != "cuda"
    ):
        raise UserError("run.cuda_graph=true is for one process on a GPU; set run.cuda_graph=false")
    if processes.is_first:
        check_installed(config.tracking.trackers)
    # Before the seed: timm draws numbers for a model that it fills with weights.
    config, weights, taken_over = begin(config, processes, resume, weights)
    torch.manual_seed(config.run.seed)
    # Convolutions have fixed shapes: let cuDNN measure its algorithms; float32 parts may use TF32.
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")

    datasets = open_datasets(config.data, config.model.num_classes, processes)
    batch = device_batch(config, processes)
    resolved = resolve_settings(config, datasets.train, processes, batch)
    samples = train_samples(config, datasets.train, processes, batch, resolved.settings)
    loader = train_loader(config.data, samples, resolved.settings, processes)
    evaluation = validation(config, datasets.val, processes)
    model, frozen_norms, of_model = build_trained_model(
        config.model, datasets.train.classes, processes.device, weights
    )
    sizes = {"augment.size": config.augment.size, "evaluation.size": config.evaluation.size}
    check_input_sizes(model, config.model.name, sizes)
    if batch == 1:
        check_batch_of_one(model, config.augment.size, frozen_norms)
    class_weights = None
    if config.loss.class_weights == "balanced":
        class_weights = balanced_weights(datasets.train.labels, config.model.num_classes)
    step = build_step(
        config,
        processes,
        samples.layout.accumulation,
        evaluation.precision,
        model,
        frozen_norms,
        class_weights,
    )
    per_epoch, plan = samples.updates_per_epoch, config.schedule
    schedule = CosineSchedule(
        step.optimizer,
        peak_lr=config.optimizer.lr,
        total_updates=plan.epochs * per_epoch,
        warmup_updates=round(plan.warmup_epochs * per_epoch),
        warmup_lr=plan.warmup_lr,
        min_lr=plan.min_lr,
        cycles=_cycles(plan, per_epoch),
    )
    resolved_config = config.model_dump(mode="json")
    progress = Progress()
    if resume is not None:
        defaults = cfg.Config(name="defaults").model_dump(mode="json")
        progress = restore_run(
            resume,
            step,
            per_epoch,
            resolved_config,
            defaults,
            datasets.train,
            processes,
        )
    introduction = [
        *describe_run(config.model.name, samples, evaluation.precision, processes),
        describe_backend(step.optimizer),
        describe_decoding(
            resolved.settings,
            resolved.is_given("decode"),
            samples.transform.decode_mode == "shared",
            processes.device,
        ),
        describe_randaugment(samples.transform, processes.device),
        resolved.origin,
        datasets.split,
        *taken_over,
        *of_model,
    ]
    return Trainer(
        step,
        samples,
        loader,
        schedule,
        evaluation,
        processes,
        TrainerOptions(
            num_epochs=plan.epochs,
            max_updates=config.run.max_steps,
            eval_every=config.evaluation.every,
            log_every=config.run.log_every,
            checkpoint_every=config.run.checkpoint_every,
            checkpoint_minutes=config.run.checkpoint_minutes,
            keep_checkpoints=config.run.keep_checkpoints,
            max_checkpoint_failures=config.run.max_checkpoint_failures,
            max_skipped_updates=config.run.max_skipped_steps,
            warm_up=config.run.warm_up,
        ),
        resolved_config,
        [line for line in introduction if line is not None],
        progress,
        tracking_options(config.tracking),
    )


def tracking_options(tracking: cfg.Tracking) -> TrackingOptions:
    """What the section says, in the words of `run.records`."""
    return TrackingOptions(
        services=tracking.trackers,
        project=tracking.project,
        name=tracking.name,
        tags=tracking.tags,
        is_offline=tracking.mode == "offline",
        folder=tracking.dir,
        checkpoints=tracking.checkpoints,
    )


def _cycles(schedule: cfg.Schedule, updates_per_epoch: int) -> Cycles | None:
    """The warm restarts of a schedule; None without."""
    if schedule.cycle_epochs is None:
        return None
    return Cycles(
        schedule.cycle_epochs * updates_per_epoch, schedule.cycle_growth, schedule.cycle_decay
    )


def build_step(
    config: cfg.Config,
    processes: Processes,
    accumulation: int,
    precision: Precision,
    model: nn.Module,
    frozen_norms: Sequence[nn.Module] = (),
    class_weights: Tensor | None = None,
) -> TrainStep:
    """The training step with its loss, optimizer and EMA.

    Args:
        model, frozen_norms: see `build_trained_model`.
        class_weights: of the loss, float32 [num_classes].

    Raises:
        UserError: see `create_optimizer`.
    """
    optimizer = create_optimizer(
        model,
        config.optimizer.name,
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
        backend=config.optimizer.backend,
        layer_decay=config.optimizer.layer_decay,
        layer_decay_min_scale=config.optimizer.layer_decay_min_scale,
    )
    on_gpu = processes.device.type == "cuda"
    ema = None
    if config.ema.decay is not None:
        ema = ModelEma(model, config.ema.decay, config.ema.warmup)
    return TrainStep(
        model,
        create_loss(
            config.loss.name, config.loss.smoothing, config.loss.target_threshold, class_weights
        ).to(processes.device),
        optimizer,
        ema,
        precision,
        processes,
        accumulation=accumulation,
        mean=config.data.mean,
        std=config.data.std,
        clip_grad=config.optimizer.clip_grad,
        compile=on_gpu if config.run.compile == "auto" else config.run.compile,
        cuda_graph=on_gpu and processes.world_size == 1
        if config.run.cuda_graph == "auto"
        else config.run.cuda_graph,
        seed=config.run.seed,
        frozen_norms=frozen_norms,
    )


def begin(
    config: cfg.Config,
    processes: Processes,
    resume: Path | None = None,
    weights: Weights | None = None,
) -> tuple[cfg.Config, Weights | None, list[str]]:
    """The configuration as the initial weights complete it, they, and a line for the log.

    For the arguments see `build_trainer`.
    """
    source = config.model.weights
    if source is None:
        return config, None, []
    if resume is not None:
        return as_begun(config, load_checkpoint(resume)["config"]), None, []
    if weights is None:
        with processes.first_goes_ahead("reading the weights"):  # others find a download cached
            weights = open_weights(source)
    if weights.preprocessing is None:
        return config, weights, [f"{source} does not say how its images were prepared"]
    config, taken_over = with_preprocessing(config, weights.preprocessing)
    return config, weights, taken_over


def device_batch(config: cfg.Config, processes: Processes) -> int:
    """Images of one micro-batch on one device.

    Raises:
        UserError: no device batch makes the global batch on so many processes.
    """
    return plan_batches(
        config.optimizer.batch_size,
        processes.world_size,
        config.run.batch_per_device,
        _default_batch(processes.device),
        multiple_of=PAIR_BLOCK if config.mixes else 1,
    )


def _default_batch(device: torch.device) -> int:
    if device.type != "cuda":
        return DEFAULT_BATCH_CPU
    if not torch.cuda.is_available():  # a plan for another machine
        return DEFAULT_BATCH_GPU
    memory = torch.cuda.get_device_properties(device).total_memory
    return DEFAULT_BATCH_LARGE_GPU if memory >= LARGE_GPU_BYTES else DEFAULT_BATCH_GPU


def decodes_once_for_all_copies(config: cfg.Config, processes: Processes) -> bool:
    """Whether copies of an image meet in one batch and are decoded once, as whole images."""
    augment = config.augment
    return augment.repeats > 1 and (augment.copies == "together" or processes.world_size == 1)


def train_samples(
    config: cfg.Config,
    index: DatasetIndex,
    processes: Processes,
    batch_per_device: int,
    settings: LoaderSettings,
) -> TrainSamples:
    """The training epochs of this process.

    Args:
        settings: say how images are decoded, where copies do not share it.

    Raises:
        UserError: an epoch is shorter than one global batch, or augment.backend cannot run.
    """
    augment, mixing = config.augment, config.mixing
    policy = None if augment.randaugment is None else RandAugmentPolicy.parse(augment.randaugment)
    samples = TrainSamples(
        index=index,
        layout=BatchLayout(
            config.optimizer.batch_size,
            batch_per_device,
            processes.world_size,
            processes.rank,
            # Without copies there is nothing to spread; slices keep the draws' ranges short.
            augment.copies if augment.repeats > 1 else "together",
        ),
        transform=with_backend(
            TrainTransform(
                augment.size,
                augment.scale,
                augment.ratio,
                augment.hflip,
                augment.interpolation,
                policy,
                "shared"
                if decodes_once_for_all_copies(config, processes)
                else settings.decode_mode(processes.device),
                gpu_share=settings.hw_decoder_load,
            ),
            augment.backend,
            processes.device,
        ),
        mixing=MixPolicy(
            mixing.mixup,
            mixing.cutmix,
            mixing.prob,
            mixing.switch_prob,
            mixing.mode,
            min(mixing.group_size, config.optimizer.batch_size),
        )
        if config.mixes
        else None,
        mixing_off_epoch=mixing.off_epoch,
        repeats=augment.repeats,
        seed=config.run.seed,
        erasing=ErasingPolicy(augment.random_erasing, augment.erase_mode, augment.erase_count)
        if augment.random_erasing > 0
        else None,
        balanced=config.data.sampling == "balanced",
    )
    if samples.updates_per_epoch == 0:
        raise UserError(
            f"{index.origin} has {len(index)} images, fewer than optimizer.batch_size="
            f"{config.optimizer.batch_size}; lower optimizer.batch_size"
        )
    return samples


def train_loader(
    config: cfg.Data,
    samples: TrainSamples,
    settings: LoaderSettings,
    processes: Processes,
    bad_images: BadImages | None = None,
) -> Loader:
    """The training loader; give `bad_images` where several loaders share them."""
    if bad_images is None:
        bad_images = BadImages(
            samples.index, config.on_bad_image, config.max_bad_fraction, config.max_pixels
        )
    fill = fill_color(config.mean)
    return builders.train_loader(samples, settings, processes.device, bad_images, fill)


def eval_loader(
    config: cfg.Config,
    index: DatasetIndex,
    processes: Processes,
    on_bad_image: Literal["substitute", "raise"] = "raise",
) -> tuple[EvalSamples, Loader]:
    """The validation images of this process and their loader.

    An undecodable image is an error by default, whatever `data.on_bad_image` says: a stand-in
    would be counted twice. Tuning says nothing about this loader: a checkpoint has one accuracy,
    before and after.
    """
    evaluation, data, device = config.evaluation, config.data, processes.device
    threads = data.threads or threads_per_process(processes.local_world_size)
    load = HW_DECODER_LOAD if data.hw_decoder_load is None else data.hw_decoder_load
    decode: DecodeSetting = "full" if data.decode == "full" else "host"
    settings = LoaderSettings.untuned(device, threads, 2, load, decode)
    samples = EvalSamples(
        index,
        EvalLayout(
            len(index),
            # Where a share is smaller, the rest of its batch would be copies of one image.
            min(evaluation.batch_per_device, -(-len(index) // processes.world_size)),
            processes.world_size,
            processes.rank,
        ),
        EvalGeometry(evaluation.size, evaluation.crop_ratio),
    )
    bad_images = BadImages(index, on_bad_image, data.max_bad_fraction, data.max_pixels)
    loader = builders.eval_loader(samples, settings, device, bad_images, evaluation.interpolation)
    return samples, loader


def validation(config: cfg.Config, index: DatasetIndex, processes: Processes) -> Validation:
    """The evaluation of a run's models on the images of `index`."""
    samples, loader = eval_loader(config, index, processes)
    precision = choose_precision(config.run.amp, processes.device)
    return Validation(samples, loader, processes, precision, config.data.mean, config.data.std)


def build_trained_model(
    config: cfg.Model, classes: Sequence[str], device: torch.device, weights: Weights | None = None
) -> tuple[nn.Module, list[nn.Module], list[str]]:
    """The model on its device, channels-last, with its initial weights, frozen where it shall be.

    Args:
        classes: of the training images.
        weights: to begin with; None for the model's own initialisation.

    Returns:
        The model, its norms that stay in evaluation mode, and lines for the log.

    Raises:
        UserError: see `build_model`; or the weights do not fit, or there is no such part to freeze.
    """
    model = build_model(config, device)
    lines = []
    if weights is not None:
        lines.append(
            load_initial(model, weights, classes, config.head, classifier_parameters(model))
        )
    frozen_norms: list[nn.Module] = []
    if config.freeze is not None or config.freeze_norm:
        classifier = classifier_parameters(model)
        frozen_norms = freeze(model, config.freeze, classifier, config.freeze_norm)
        sizes = {p: p.numel() for p in model.parameters()}
        learning = sum(size for p, size in sizes.items() if p.requires_grad)
        lines.append(
            f"{learning:,} of {sum(sizes.values()):,} parameters learn; {len(frozen_norms)} batch "
            "norms keep their statistics"
        )
    return model, frozen_norms, lines


def build_model(config: cfg.Model, device: torch.device) -> nn.Module:
    """The model on its device, channels-last, as it is initialised.

    Raises:
        UserError: unknown model.
    """
    model = create_model(config.name, config.num_classes, config.drop_path, config.dropout)
    # Module.to knows memory_format, its type stub does not.
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
