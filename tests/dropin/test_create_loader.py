"""create_loader keeps timm's contract, and falls back to timm, loudly, where DALI cannot."""

import ast
import inspect
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

timm_data = pytest.importorskip("timm.data")
from timm.data.loader import PrefetchLoader  # noqa: E402
from timm.data.loader import create_loader as timms_create_loader  # noqa: E402

from dali_rsb import UserError, create_loader  # noqa: E402
from dali_rsb.draws.erasing import ErasingPolicy  # noqa: E402
from dali_rsb.draws.mixing import MixPolicy  # noqa: E402
from dali_rsb.dropin.timm_loader import TimmLoader  # noqa: E402

CPU = torch.device("cpu")
POLICY = "rand-m6-mstd0.5-inc1"
# What timm's train.py passes for RSB, with colour jitter at its default.
RECIPE = {
    "is_training": True,
    "auto_augment": POLICY,
    "interpolation": "random",
    "scale": [0.08, 1.0],
    "ratio": [0.75, 1.3333],
    "device": CPU,
    "batch_choice_seed": 42,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Indices of datasets are stored in the user's cache."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    """Thirteen photographs in three classes, with names that sort naturally only."""
    root = tmp_path_factory.mktemp("photographs")
    for number, photograph in enumerate(photographs[:13]):
        path = root / f"class{9 + number % 3}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        photograph.save(path, quality=90)
    return root


@pytest.fixture
def dataset(folder):
    return timm_data.ImageDataset(str(folder))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """300 images of one grey level each, for repeated augmentation."""
    root = tmp_path_factory.mktemp("many")
    for i in range(300):
        path = root / f"class{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(path)
    return root


def _mixup(**options):
    settings = {"mixup_alpha": 0.1, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": 3}
    return timm_data.FastCollateMixup(**settings | options)


def test_the_signature_is_timms():
    ours = inspect.signature(create_loader).parameters
    theirs = inspect.signature(timms_create_loader).parameters
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name
        assert ours[name].kind == parameter.kind


@pytest.mark.skipif("TIMM_SOURCE" not in os.environ, reason="TIMM_SOURCE: no checkout of timm")
def test_the_signature_is_that_of_the_checkout():
    source = Path(os.environ["TIMM_SOURCE"]) / "timm/data/loader.py"
    (function,) = (
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "create_loader"
    )
    ours = inspect.signature(create_loader).parameters
    assert [argument.arg for argument in function.args.args] == list(ours)
    scope = {
        "torch": torch,
        "IMAGENET_DEFAULT_MEAN": timm_data.IMAGENET_DEFAULT_MEAN,
        "IMAGENET_DEFAULT_STD": timm_data.IMAGENET_DEFAULT_STD,
    }
    defaults = [eval(ast.unparse(default), scope) for default in function.args.defaults]
    assert defaults == [ours[name].default for name in list(ours)[-len(defaults) :]]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("input_size", "crop_pct"), [((3, 64, 64), 0.95), (64, None)])
def test_an_evaluation_is_timms(folder, interpolation, input_size, crop_pct):
    options = {"interpolation": interpolation, "crop_pct": crop_pct, "device": CPU}
    dataset = timm_data.create_dataset("", str(folder))
    ours = create_loader(dataset, input_size, 4, **options)
    theirs = timms_create_loader(
        timm_data.create_dataset("", str(folder)), input_size, 4, num_workers=0, **options
    )
    assert isinstance(ours, TimmLoader)
    assert len(ours) == len(theirs) == 4
    for _ in range(2):
        for (images, targets), (expected, expected_targets) in zip(ours, theirs, strict=True):
            assert torch.equal(targets, expected_targets)
            assert targets.dtype == torch.int64
            assert images.shape == expected.shape  # the last batch is short
            assert images.stride() == expected.stride()
            difference = (images - expected).abs() * 57  # back to levels of 0..255
            assert difference.mean() < 0.5
            assert (difference > 3).float().mean() < 0.01


def test_an_evaluation_is_in_the_order_of_filenames(many):
    dataset = timm_data.create_dataset("", str(many))
    loader = create_loader(dataset, 8, 64, device=CPU, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    levels = torch.cat([images[:, 0, 4, 4] for images, _ in loader]).round().int().tolist()
    assert levels == [int(Path(name).stem) % 256 for name in dataset.filenames()]


def test_attributes(dataset):
    options = {"device": CPU, "num_workers": 2, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    arguments = RECIPE | options | {"re_prob": 0.2, "re_mode": "pixel", "re_count": 2}
    ours = create_loader(dataset, (3, 32, 32), 4, **arguments)
    theirs = timms_create_loader(dataset, (3, 32, 32), 4, **arguments)
    assert ours.dataset is theirs.dataset
    assert len(ours) == len(theirs) == 3
    for name in ("device", "img_dtype", "mixup_enabled"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("mean", "std"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)
    for name in ("probability", "mode", "max_count", "num_splits"):
        assert getattr(ours.random_erasing, name) == getattr(theirs.random_erasing, name)
    for name in ("batch_size", "drop_last", "num_workers"):
        assert getattr(ours.loader, name) == getattr(theirs.loader, name), name
    assert len(ours.sampler) == len(theirs.sampler) == 13
    assert len(ours.batch_sampler) == len(theirs.batch_sampler) == 3
    assert ours.batch_sampler.batch_size == 4
    assert not hasattr(ours.batch_sampler, "set_epoch")  # train.py then asks the sampler
    ours.mixup_enabled = True  # as in timm, of no effect without a FastCollateMixup
    assert ours.mixup_enabled is False
    evaluation = create_loader(dataset, 32, 4, device=CPU, re_prob=0.5)
    assert evaluation.random_erasing is None


def test_the_dataset_gets_timms_transform(dataset):
    create_loader(dataset, (3, 32, 32), 4, **RECIPE)
    ours = repr(dataset.transform)
    timms_create_loader(dataset, (3, 32, 32), 4, **RECIPE)
    assert ours == repr(dataset.transform)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_without_mixing(dataset, dtype):
    loader = create_loader(dataset, (3, 32, 32), 4, img_dtype=dtype, **RECIPE)
    batches = list(loader)
    assert len(batches) == 3
    for images, targets in batches:
        assert images.shape == (4, 3, 32, 32)
        assert images.dtype == dtype
        assert images.is_contiguous()
        assert targets.dtype == torch.int64
    assert create_loader(dataset, 32, 4, fp16=True, **RECIPE).img_dtype == torch.float16


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("minmax", [None, [0.2, 0.8]])
def test_training_with_mixing(many, mode, minmax):
    collate = _mixup(mode=mode, cutmix_minmax=minmax)
    dataset = timm_data.create_dataset("", str(many))
    loader = create_loader(dataset, 8, 50, collate_fn=collate, **RECIPE)
    targets = []
    for images, batch_targets in loader:
        assert images.shape == (50, 3, 8, 8)
        assert batch_targets.dtype == torch.float32
        targets.append(batch_targets)
    targets = torch.cat(targets)
    assert targets.shape == (300, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(300))
    assert targets.min() == pytest.approx(0.1 / 3)
    assert 0.2 < (targets.max(1).values < 0.9).float().mean() < 0.9


def test_mixing_is_switched_off_for_the_next_epoch(many):
    torch.manual_seed(0)  # the draws' seed: one box in sixteen is empty in images this small
    collate = _mixup(mixup_alpha=0.0)
    dataset = timm_data.create_dataset("", str(many))
    options = RECIPE | {"auto_augment": None, "color_jitter": None, "hflip": 0.0, "ratio": [1, 1]}
    loader = create_loader(dataset, 8, 100, collate_fn=collate, **options)
    assert loader.mixup_enabled

    def flat(images):
        return ((images - images[:, :, :1, :1]).abs().amax((1, 2, 3)) < 1e-5).all()

    for epoch in range(3):
        if epoch == 2:
            loader.mixup_enabled = False
        images, targets = next(iter(loader))
        assert flat(images) == (epoch == 2)
    assert collate.mixup_enabled is loader.mixup_enabled is False
    # As in timm, targets stay smoothed rows.
    expected = torch.tensor([0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3])
    torch.testing.assert_close(targets.sort(1).values, expected.expand(100, 3))


def test_every_epoch_differs_and_set_epoch_brings_it_back(dataset):
    torch.manual_seed(7)
    loader = create_loader(dataset, 32, 4, **RECIPE)
    first, second = next(iter(loader)), next(iter(loader))
    assert not torch.equal(first[0], second[0])
    loader.sampler.set_epoch(0)
    assert torch.equal(next(iter(loader))[0], first[0])
    torch.manual_seed(8)
    other = create_loader(dataset, 32, 4, **RECIPE)
    assert not torch.equal(next(iter(other))[0], first[0])


def test_repeated_augmentation_on_one_process(many):
    dataset = timm_data.create_dataset("", str(many))
    options = RECIPE | {"auto_augment": POLICY, "num_aug_repeats": 3.0}
    loader = create_loader(dataset, 8, 64, **options)
    order = np.array(list(loader.sampler))
    assert len(order) == 256
    assert (order[:255].reshape(-1, 3) == order[:255:3, None]).all()
    assert len(list(loader)) == len(loader) == 4


@pytest.fixture
def second_of_two():
    """A process group that this process believes to be the second of two of."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize("arguments", [{}, {"num_aug_repeats": 3.0}, {"is_training": False}])
def test_processes_get_the_indices_that_timm_gives_them(many, arguments):
    dataset = timm_data.create_dataset("", str(many))
    options = RECIPE | {"distributed": True} | arguments
    if not options["is_training"]:
        options["interpolation"] = "bicubic"
    ours = create_loader(dataset, 8, 16, **options)
    theirs = timms_create_loader(dataset, 8, 16, **options)
    assert isinstance(ours, TimmLoader)
    assert len(ours) == len(theirs)
    for epoch in (0, 3):
        for loader in (ours, theirs):
            if hasattr(loader.sampler, "set_epoch"):
                loader.sampler.set_epoch(epoch)
        assert list(ours.sampler) == list(theirs.sampler)


def test_distributed_needs_a_process_group(dataset):
    with pytest.raises(UserError, match="process group"):
        create_loader(dataset, 32, 4, distributed=True, device=CPU)


def test_random_erasing_takes_timms_share_of_the_batch(many):
    dataset = timm_data.create_dataset("", str(many))
    options = RECIPE | {"auto_augment": None, "color_jitter": 0, "mean": (2.0,) * 3}
    arguments = options | {"re_prob": 0.5, "re_mode": "const", "re_split": True}
    loader = create_loader(dataset, 8, 100, **arguments)
    erased = torch.cat([(images == 0).any(1).flatten(1).any(1)[None] for images, _ in loader])
    assert not erased[:, :50].any()
    assert erased[:, 50:].float().mean() == pytest.approx(0.5, abs=0.12)


FALLBACKS = {
    "no_aug": {"no_aug": True},
    "train_crop_mode": {"train_crop_mode": "rkrc"},
    "color_jitter": {"auto_augment": None},
    "grayscale_prob": {"grayscale_prob": 0.2},
    "gaussian_blur_prob": {"gaussian_blur_prob": 0.2},
    "auto_augment": {"auto_augment": "original"},
    "interpolation": {"interpolation": "lanczos"},
    "collate_fn": {"collate_fn": timm_data.loader.fast_collate},
    "use_prefetcher": {"use_prefetcher": False},
    "tf_preprocessing": {"is_training": False, "tf_preprocessing": True, "use_prefetcher": False},
    "input_size_choices": {"input_size_choices": [16, 24]},
    "crop_mode": {"is_training": False, "crop_mode": "squash"},
    "crop_pct": {"is_training": False, "crop_pct": 1.2},
    "crop_border_pixels": {"is_training": False, "crop_border_pixels": 2},
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_dali_does_not_do_is_timms(dataset, name, caplog):
    arguments = RECIPE | FALLBACKS[name]
    if not arguments["is_training"]:
        arguments["interpolation"] = "bicubic"
    with caplog.at_level(logging.WARNING):
        loader = create_loader(dataset, (3, 24, 24), 4, **arguments)
    assert not isinstance(loader, TimmLoader)
    (message,) = caplog.messages
    assert f"does not do {name}=" in message or f", {name}=" in message
    if name not in ("use_prefetcher", "tf_preprocessing"):
        assert isinstance(loader, PrefetchLoader)
    if name != "tf_preprocessing":
        assert message.count("=") == 1  # no other argument is blamed


def test_one_warning_names_every_argument(dataset, caplog):
    arguments = RECIPE | {"auto_augment": "augmix-m5", "hflip": 0.3, "grayscale_prob": 0.1}
    with caplog.at_level(logging.WARNING):
        loader = create_loader(dataset, (3, 24, 32), 4, num_workers=0, **arguments)
    (message,) = caplog.messages
    for part in ("input_size=(3, 24, 32)", "auto_augment='augmix-m5'", "grayscale_prob=0.1"):
        assert part in message
    # timm got all the arguments.
    images, _ = next(iter(loader))
    assert images.shape == (4, 3, 24, 32)
    assert "RandomHorizontalFlip(p=0.3)" in repr(dataset.transform)


@pytest.mark.parametrize("option", ["input_img_mode", "target_transform", "load_bytes", "subclass"])
def test_datasets_that_do_more_are_timms(folder, option, caplog):
    class Subclass(timm_data.ImageDataset):
        pass

    if option == "subclass":
        dataset = Subclass(str(folder))
    else:
        value = {"input_img_mode": "L", "target_transform": int, "load_bytes": True}[option]
        dataset = timm_data.ImageDataset(str(folder), **{option: value})
    with caplog.at_level(logging.WARNING):
        loader = create_loader(dataset, 24, 4, device=CPU)
    assert isinstance(loader, PrefetchLoader)
    assert f"dataset={type(dataset).__name__} over ReaderImageFolder" in caplog.text


@pytest.mark.parametrize(
    "options", [{"mode": "half"}, {"correct_lam": False}, {"multi_label": True}]
)
def test_mixing_that_is_not_ours_is_timms(dataset, options, caplog):
    collate = _mixup(**options)
    with caplog.at_level(logging.WARNING):
        loader = create_loader(dataset, 24, 4, collate_fn=collate, **RECIPE)
    assert isinstance(loader, PrefetchLoader)
    assert "does not do collate_fn=FastCollateMixup" in caplog.text


def test_options_of_worker_processes_need_no_fallback(dataset, caplog):
    options = {
        "pin_memory": True,
        "persistent_workers": False,
        "worker_seeding": "part",
        "use_multi_epochs_loader": True,
        "vflip": 0.5,
        "color_jitter": None,
    }
    create_loader(dataset, 24, 4, **RECIPE)  # what is said of a folder that is new stands behind
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        loader = create_loader(dataset, 24, 4, **RECIPE | options)
    assert isinstance(loader, TimmLoader)
    assert not caplog.messages


def test_vertical_flips(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    for i in range(40):
        path = tmp_path / "images" / "class" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    dataset = timm_data.ImageDataset(str(tmp_path / "images"))
    options = {"color_jitter": None, "scale": (1, 1), "ratio": (1, 1), "vflip": 0.5}
    arguments = {"is_training": True, "device": CPU} | options
    images, _ = next(iter(create_loader(dataset, 16, 40, **arguments)))
    upright = images[:, 0, 0, 0] > 0
    assert 5 < upright.sum() < 35
    assert ((images[:, 0, -1, 0] > 0) != upright).all()
    assert (create_loader(dataset, 16, 40, **arguments | {"vflip": 0.0}).dataset) is dataset


def test_unreadable_images_are_replaced_as_in_timm(folder, tmp_path, caplog):
    for path in folder.rglob("*.jpg"):
        copy = tmp_path / "images" / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        # One has no header, another loses its end; each time, timm takes the next one.
        copy.write_bytes({"4": b"nothing", "8": data[: len(data) // 2]}.get(path.stem, data))
    dataset = timm_data.ImageDataset(str(tmp_path / "images"))
    ours = create_loader(dataset, 32, 5, device=CPU)
    theirs = timms_create_loader(dataset, 32, 5, device=CPU, num_workers=0)
    with caplog.at_level(logging.WARNING):
        for (images, targets), (expected, expected_targets) in zip(ours, theirs, strict=True):
            assert torch.equal(targets, expected_targets)
            assert (images - expected).abs().mean() < 0.01
    assert "stands in" in caplog.text


def test_torchvisions_folders(folder):
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(folder))
    loader = create_loader(dataset, 24, 5, device=CPU)
    assert isinstance(loader, TimmLoader)
    # torchvision sorts class10 before class9.
    assert torch.cat([targets for _, targets in loader]).tolist() == dataset.targets
    assert dataset.classes[0] == "class10"


def test_mistakes_are_told(dataset, monkeypatch):
    with pytest.raises(UserError, match="must be even"):
        create_loader(dataset, 24, 5, collate_fn=_mixup(), **RECIPE)
    with pytest.raises(UserError, match="lower batch_size"):
        create_loader(dataset, 24, 14, **RECIPE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="give device='cpu'"):
        create_loader(dataset, 24, 4)
    monkeypatch.setitem(sys.modules, "timm.data.loader", None)
    with pytest.raises(UserError, match=r"no_aug=True and timm, which does, is not installed"):
        create_loader(dataset, 24, 4, no_aug=True, is_training=True, device=CPU)


def test_settings_are_those_that_were_given(dataset):
    """None of them is timm's default, so that none can stand in for another."""
    collate = _mixup(
        mixup_alpha=0.3,
        cutmix_alpha=0.7,
        cutmix_minmax=None,
        prob=0.6,
        switch_prob=0.2,
        mode="pair",
        label_smoothing=0.05,
        num_classes=4,
    )
    options = {"hflip": 0.1, "vflip": 0.4, "scale": [0.3, 0.9], "ratio": [0.5, 1.5]}
    erasing = {"re_prob": 0.35, "re_mode": "pixel", "re_count": 3, "re_split": True}
    loader = create_loader(dataset, 32, 4, collate_fn=collate, **RECIPE | options | erasing)
    made = loader._preprocessing
    assert made.mixing == MixPolicy(0.3, 0.7, 0.6, 0.2, "pair", partners="ends")
    assert made.erasing == ErasingPolicy(0.35, "pixel", 3, num_splits=2)
    assert (made.num_classes, made.label_smoothing) == (4, 0.05)
    transform = made.transform
    assert (transform.hflip, transform.vflip, transform.size_px) == (0.1, 0.4, 32)
    assert (transform.scale, transform.ratio) == ((0.3, 0.9), (0.5, 1.5))
    assert (transform.interpolation, transform.decode_mode) == ("random", "roi")
    collate = _mixup(cutmix_minmax=[0.2, 0.8], mixup_alpha=0.0)
    plain = create_loader(dataset, 32, 4, collate_fn=collate, **RECIPE)._preprocessing
    assert plain.mixing.cutmix_minmax == (0.2, 0.8)
    assert plain.erasing is None
    assert (plain.transform.hflip, plain.transform.vflip) == (0.5, 0.0)
    default = create_loader(dataset, 32, 4, **RECIPE | {"scale": None, "ratio": None})
    transform = default._preprocessing.transform
    assert (transform.scale, transform.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))


@pytest.mark.usefixtures("second_of_two")
def test_processes_draw_at_positions_of_their_own(many):
    dataset = timm_data.create_dataset("", str(many))
    loader = create_loader(dataset, 8, 16, distributed=True, **RECIPE)
    specs = list(loader._specs(0, 0, loader.sampler.indices()))
    assert [spec.positions for spec in specs[:2]] == [range(1, 32, 2), range(33, 64, 2)]
