"""timm's `create_loader`: by DALI where it does the same, handed to timm where it does not.

timm is imported only when an argument calls for it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dali_rsb.constants import IMAGENET_MEAN, IMAGENET_STD
from dali_rsb.dataset.image_list import images_of_samples
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.erasing import ErasingPolicy
from dali_rsb.draws.mixing import MixPolicy
from dali_rsb.draws.order import EpochSampler
from dali_rsb.draws.randaugment import RandAugmentPolicy
from dali_rsb.draws.samples import TrainTransform
from dali_rsb.dropin.epoch_loader import (
    EpochLoader,
    EvalPreprocessing,
    Output,
    Resources,
    TrainPreprocessing,
    World,
    resolve_device,
)
from dali_rsb.dropin.foreign import Listing, read_dataset
from dali_rsb.errors import UserError
from dali_rsb.loader.bad_images import BadImages
from pipelines.types import INTERPOLATIONS

logger = logging.getLogger(__name__)

DEFAULT_CROP_PCT = 0.875


def create_loader(
    dataset: Any,
    input_size: int | tuple[int, int] | tuple[int, int, int],
    batch_size: int,
    is_training: bool = False,
    no_aug: bool = False,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    re_split: bool = False,
    train_crop_mode: str | None = None,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    color_jitter_prob: float | None = None,
    grayscale_prob: float | None = 0.0,
    gaussian_blur_prob: float | None = 0.0,
    auto_augment: str | None = None,
    num_aug_repeats: float = 0,
    num_aug_splits: int = 0,
    interpolation: str = "bilinear",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    num_workers: int = 1,
    distributed: bool = False,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    collate_fn: Callable[..., Any] | None = None,
    pin_memory: bool = False,
    fp16: bool = False,
    img_dtype: torch.dtype | None = torch.float32,
    device: torch.device = torch.device("cuda"),  # noqa: B008 - timm's default
    use_prefetcher: bool = True,
    use_multi_epochs_loader: bool = False,
    persistent_workers: bool = True,
    worker_seeding: str | Callable[..., int] = "all",
    tf_preprocessing: bool = False,
    input_size_choices: Sequence[Any] | None = None,
    batch_size_choices: Sequence[int] | None = None,
    batch_choice_weights: Sequence[float] | None = None,
    batch_choice_seed: int = 0,
    batch_choice_schedule: str = "constant",
    batch_schedule_epochs: int | None = None,
    batch_schedule_spread: float = 0.65,
    batch_schedule_random_mix: float = 0.1,
    num_batches: int | None = None,
) -> TimmLoader:
    """Create a loader with timm's `create_loader` arguments, in its order and with its defaults.

    DALI loads folders of RGB images (timm's `ImageDataset` over a folder, torchvision's
    `ImageFolder`) as square images, with RandomResizedCrop, flips, RandAugment, mixup and CutMix
    from a `FastCollateMixup`, random erasing and repeated augmentation (on one process too), or
    with timm's evaluation resize and centre crop. With other arguments the loader is timm's own,
    and one warning names them.

    As timm's prefetching loader it yields normalised contiguous images [B, 3, H, W] of `img_dtype`
    and targets, int64 [B] or, with a `FastCollateMixup`, float32 [B, num_classes], both on
    `device`. `num_workers` is the number of CPU threads. `pin_memory`, `persistent_workers`,
    `use_multi_epochs_loader` and `worker_seeding` change nothing: there are no worker processes.
    Draws come from `torch.initial_seed()`.

    Raises:
        UserError: a GPU is asked for where there is none, `distributed` without a process group,
            an odd batch to mix, not one batch, or timm is needed and not installed.
    """
    given = dict(locals())
    obstacles = _obstacles(given)
    if obstacles:
        return _timms_own(given, obstacles)
    _set_transform(dataset, given)
    return TimmLoader(given)


class TimmLoader(EpochLoader):
    """What `create_loader` returns: the attributes of timm's `PrefetchLoader`, and a few of its
    `DataLoader`'s.

    Attributes:
        dataset: the dataset that was given; images come in its order, and those that cannot be
            read are replaced by the next one, as there.
        sampler: gives the order of an epoch; `sampler.set_epoch` chooses the epoch.
        collate_fn: the `FastCollateMixup` that was given, or None.
        random_erasing: its settings, or None.
        img_dtype: of the images.
        mean, std: of the pixels 0..255, [1, 3, 1, 1] on the device.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        is_training, distributed = given["is_training"], given["distributed"]
        batch_size, device = given["batch_size"], resolve_device(given["device"])
        if distributed and not (dist.is_available() and dist.is_initialized()):
            raise UserError("distributed=True, but there is no process group; create it first")
        world = World.current() if distributed else World()
        found = _listing(given["dataset"])
        assert found is not None
        images = images_of_samples(
            found.paths, found.labels, found.classes, found.root, reading=found.reading
        )
        preprocessing = _training(given, world) if is_training else _evaluation(given)
        self.img_dtype: torch.dtype = (
            torch.float16 if given["fp16"] else given["img_dtype"] or torch.float32
        )
        self.collate_fn = given["collate_fn"]
        self.random_erasing = (
            preprocessing.erasing if isinstance(preprocessing, TrainPreprocessing) else None
        )
        mean, std = tuple(given["mean"]), tuple(given["std"])
        self.mean, self.std = (self._of_pixels(values, device) for values in (mean, std))
        # Processes must agree on the order: it is then that of torch's DistributedSampler.
        seed = torch.initial_seed() % 2**63
        sampler = EpochSampler(
            len(images),
            shuffle=is_training,
            repeats=given["num_aug_repeats"] or None,
            seed=0 if distributed else seed,
            num_replicas=world.size,
            rank=world.rank,
        )
        super().__init__(
            images,
            batch_size,
            sampler,
            is_training,
            preprocessing,
            Output(self.img_dtype, mean, std, channels_last=False),
            Resources(device, max(1, given["num_workers"])),
            BadImages(images.index, "substitute", max_fraction=1.0),
            seed,
            world,
        )
        self.dataset = given["dataset"]

    @property
    def loader(self) -> TimmLoader:
        """This loader, where timm's holds a `DataLoader`."""
        return self

    @property
    def mixup_enabled(self) -> bool:
        """Whether the next pass mixes; setting it sets the `FastCollateMixup`'s, if there is one.

        Targets stay rows of classes without mixing too. (A pass that has begun goes on as it was.)
        """
        return self.collate_fn is not None and bool(self.collate_fn.mixup_enabled)

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        if self.collate_fn is not None:
            self.collate_fn.mixup_enabled = enabled

    @property
    def _mixes(self) -> bool:
        return self.mixup_enabled

    def _of_pixels(self, values: Sequence[float], device: torch.device) -> Tensor:
        pixels = [255 * value for value in values]
        return torch.tensor(pixels, dtype=self.img_dtype, device=device).view(1, 3, 1, 1)


def _obstacles(given: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that DALI cannot follow."""
    device = torch.device(given["device"])
    interpolations = [*INTERPOLATIONS, "random"] if given["is_training"] else [*INTERPOLATIONS]
    obstacles = {
        "dataset": _listing(given["dataset"]) is None,
        "input_size": _side(given["input_size"]) is None,
        "interpolation": given["interpolation"] not in interpolations,
        "mean": not _has_three(given["mean"]),
        "std": not _has_three(given["std"]),
        "img_dtype": not (given["img_dtype"] or torch.float32).is_floating_point,
        "device": device.type not in ("cuda", "cpu"),
        "use_prefetcher": not given["use_prefetcher"],
        "tf_preprocessing": given["tf_preprocessing"],
        "num_aug_splits": given["num_aug_splits"] > 0,
        "input_size_choices": given["input_size_choices"] is not None,
    }
    if not given["is_training"]:
        obstacles |= {
            "collate_fn": given["collate_fn"] is not None,
            "num_aug_repeats": given["num_aug_repeats"],
            "crop_pct": (given["crop_pct"] or 0) > 1,
            "crop_mode": given["crop_mode"] not in (None, "center"),
            "crop_border_pixels": given["crop_border_pixels"],
        }
    elif given["no_aug"]:
        obstacles["no_aug"] = True
    else:
        jitter = given["color_jitter"]
        jitters = any(jitter) if isinstance(jitter, (tuple, list)) else jitter
        obstacles |= {
            "collate_fn": not _is_known_mixing(given["collate_fn"]),
            "train_crop_mode": given["train_crop_mode"] not in (None, "", "rrc"),
            "auto_augment": not _is_known_policy(given["auto_augment"]),
            # As in timm, a policy takes the place of colour jitter.
            "color_jitter": jitters and not given["auto_augment"],
            "grayscale_prob": given["grayscale_prob"],
            "gaussian_blur_prob": given["gaussian_blur_prob"],
            "re_mode": given["re_prob"] > 0 and given["re_mode"] not in ("const", "rand", "pixel"),
        }
    return [name for name, stands_in_the_way in obstacles.items() if stands_in_the_way]


def _timms_own(given: Mapping[str, Any], obstacles: list[str]) -> TimmLoader:
    """timm's loader, which has the attributes of ours that timm's programs read."""
    described = ", ".join(f"{name}={_short(given[name])}" for name in obstacles if name in given)
    try:
        # Not from timm.data: there the name may have been replaced by ours.
        from timm.data.loader import create_loader as timms_create_loader
    except ImportError as error:
        raise UserError(
            f"create_loader: DALI does not do {described} and timm, which does, is not installed; "
            "pip install timm"
        ) from error
    logger.warning(
        "create_loader: DALI does not do %s; this loader is timm's own, on CPU workers", described
    )
    # An older timm lacks the newest arguments, which is no matter while they have their defaults.
    known = inspect.signature(timms_create_loader).parameters
    defaults = inspect.signature(create_loader).parameters
    arguments = {
        name: value
        for name, value in given.items()
        if name in known or value != defaults[name].default
    }
    return cast(TimmLoader, timms_create_loader(**arguments))


def _set_transform(dataset: Any, given: Mapping[str, Any]) -> None:
    """Give the dataset the transform that timm would, for those who look at single images."""
    try:
        from timm.data import create_transform
    except ImportError:
        return
    known = inspect.signature(create_transform).parameters
    arguments = {name: value for name, value in given.items() if name in known}
    dataset.transform = create_transform(**arguments, re_num_splits=_num_splits(given))


def _training(given: Mapping[str, Any], world: World) -> TrainPreprocessing:
    side, policy, mixup = _side(given["input_size"]), given["auto_augment"], given["collate_fn"]
    assert side is not None
    transform = TrainTransform(
        size_px=side,
        scale=tuple(given["scale"] or (0.08, 1.0)),
        ratio=tuple(given["ratio"] or (3 / 4, 4 / 3)),
        hflip=given["hflip"],
        interpolation=given["interpolation"],
        randaugment=RandAugmentPolicy.parse(policy) if policy else None,
        decode_mode="shared" if given["num_aug_repeats"] > world.size else "roi",
        vflip=given["vflip"],
    )
    erasing = None
    if given["re_prob"] > 0:
        erasing = ErasingPolicy(
            given["re_prob"], given["re_mode"], given["re_count"], _num_splits(given)
        )
    if mixup is None:
        return TrainPreprocessing(transform, erasing=erasing)
    if given["batch_size"] % 2:
        raise UserError(f"batch_size={given['batch_size']} must be even to mix images in pairs")
    mixing = MixPolicy(
        mixup.mixup_alpha,
        mixup.cutmix_alpha,
        mixup.mix_prob,
        mixup.switch_prob,
        mixup.mode,
        cutmix_minmax=None if mixup.cutmix_minmax is None else tuple(mixup.cutmix_minmax),
        partners="ends",
    )
    return TrainPreprocessing(transform, mixing, erasing, mixup.num_classes, mixup.label_smoothing)


def _evaluation(given: Mapping[str, Any]) -> EvalPreprocessing:
    side = _side(given["input_size"])
    assert side is not None
    geometry = EvalGeometry(side, given["crop_pct"] or DEFAULT_CROP_PCT)
    return EvalPreprocessing(geometry, given["interpolation"])


def _listing(dataset: Any) -> Listing | None:
    """The files of a folder dataset; None for other datasets, which timm loads itself."""
    is_folder = _is_exactly(dataset, "timm.data.dataset", "ImageDataset") or _is_exactly(
        dataset, "torchvision.datasets.folder", "ImageFolder"
    )
    if not is_folder or dataset.target_transform is not None:
        return None
    try:
        return read_dataset(dataset)
    except UserError:
        return None


def _is_exactly(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class, not of a subclass, which may do anything; imports nothing."""
    return (type(value).__module__, type(value).__name__) == (module, name)


def _is_known_mixing(collate_fn: Any) -> bool:
    if collate_fn is None:
        return True
    return (
        _is_exactly(collate_fn, "timm.data.mixup", "FastCollateMixup")
        and collate_fn.mode in ("batch", "pair", "elem")
        and collate_fn.correct_lam
        and not getattr(collate_fn, "multi_label", False)
        and (collate_fn.mixup_alpha > 0 or collate_fn.cutmix_alpha > 0)
    )


def _is_known_policy(policy: str | None) -> bool:
    if not policy:
        return True
    try:
        RandAugmentPolicy.parse(policy)
    except UserError:
        return False
    return True


def _side(input_size: int | Sequence[int]) -> int | None:
    """Side of square RGB images; None for others."""
    if isinstance(input_size, int):
        return input_size
    *channels, height, width = input_size
    return height if height == width and channels in ([], [3]) else None


def _num_splits(given: Mapping[str, Any]) -> int:
    # Augmentation splits, which timm would count here, are timm's work altogether.
    return 2 if given["re_split"] else 0


def _has_three(values: Any) -> bool:
    return isinstance(values, (tuple, list)) and len(values) == 3


def _short(value: object) -> str:
    if isinstance(value, (str, int, float, tuple, list, torch.device, torch.dtype)):
        return repr(value)
    reader = getattr(value, "reader", None)
    return type(value).__name__ + ("" if reader is None else f" over {type(reader).__name__}")
