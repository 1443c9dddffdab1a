"""Other people's training programs run with our loaders, only an import or a loader line changed.

timm's and torchvision's scripts come from checkouts named by TIMM_SOURCE and TORCHVISION_SOURCE.
What always runs is a caller written here that uses the loaders just as those scripts do.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from torch import nn

CPU = torch.device("cpu")
NUM_THREADS = 1


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Indices of datasets are stored in the user's cache."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def data(digits, tmp_path_factory):
    """A few digits: 30 of each to train, 6 of each to validate.

    Repeated augmentation needs 256 images.
    """
    root = tmp_path_factory.mktemp("few") / "digits"
    for split, number in (("train", 30), ("val", 6)):
        for folder in sorted((digits / split).iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                (root / split / folder.name).mkdir(parents=True)
                for image in sorted(folder.iterdir())[:number]:
                    shutil.copy(image, root / split / folder.name)
    return root


def _source(variable):
    folder = os.environ.get(variable)
    if folder is None:
        pytest.skip(f"{variable} does not name a checkout")
    return Path(folder)


def _run(script, *arguments, cwd, path=()):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT, os.environ.get("PYTHONPATH", "")])),
        "HOME": str(cwd),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def _swap(source, target, *changes):
    """Copy a program with each of some patterns, found once, replaced."""
    text = source.read_text()
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
        assert count == 1, pattern
    target.write_text(text)
    return target


TIMM_IMPORT = (
    r"from timm\.data import create_dataset, create_loader, ",
    "from dali_rsb import create_loader\nfrom timm.data import create_dataset, ",
)


def _timm_loop(loader_train, loader_eval, model, epochs, mixup_off_epoch):
    """All that timm's train.py does with its loaders, call by call."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    updates_per_epoch = len(loader_train)
    tops = []
    for epoch in range(epochs):
        if hasattr(loader_train.dataset, "set_epoch"):
            loader_train.dataset.set_epoch(epoch)
        if hasattr(loader_train.batch_sampler, "set_epoch"):
            loader_train.batch_sampler.set_epoch(epoch)
        elif hasattr(loader_train.sampler, "set_epoch"):
            loader_train.sampler.set_epoch(epoch)
        if mixup_off_epoch and epoch >= mixup_off_epoch and loader_train.mixup_enabled:
            loader_train.mixup_enabled = False

        model.train()
        for batch_index, (images, targets) in enumerate(loader_train):
            is_last = batch_index == len(loader_train) - 1
            images = images.contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        assert is_last
        assert batch_index + 1 == updates_per_epoch

        model.eval()
        correct, last_index = 0, len(loader_eval) - 1
        with torch.inference_mode():
            for batch_index, (images, targets) in enumerate(loader_eval):
                is_last = batch_index == last_index
                output = model(images)
                nn.functional.cross_entropy(output, targets)
                correct += int((output.argmax(1) == targets).sum())
        assert is_last
        tops.append(correct / len(loader_eval.dataset))
    return tops


def test_a_caller_like_timms_train_script(data):
    timm_data = pytest.importorskip("timm.data")
    from dali_rsb import create_loader

    train_set = timm_data.create_dataset(
        "", root=str(data), split="train", is_training=True, class_map="", input_img_mode="RGB"
    )
    eval_set = timm_data.create_dataset("", root=str(data), split="validation")
    common = {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "pin_memory": False,
        "img_dtype": torch.float32,
        "device": CPU,
        "distributed": False,
        "use_prefetcher": True,
    }
    collate_fn = timm_data.FastCollateMixup(
        mixup_alpha=0.1,
        cutmix_alpha=1.0,
        cutmix_minmax=None,
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=0.0,
        num_classes=10,
    )
    loader_train = create_loader(
        train_set,
        input_size=(3, 32, 32),
        input_size_choices=None,
        batch_size_choices=None,
        batch_choice_weights=None,
        batch_choice_seed=42,
        batch_choice_schedule="constant",
        batch_schedule_epochs=None,
        batch_schedule_spread=0.65,
        batch_schedule_random_mix=0.1,
        num_batches=None,
        collate_fn=collate_fn,
        use_multi_epochs_loader=False,
        batch_size=16,
        is_training=True,
        no_aug=False,
        re_prob=0.1,
        re_mode="pixel",
        re_count=1,
        re_split=False,
        train_crop_mode=None,
        scale=[0.08, 1.0],
        ratio=[3 / 4, 4 / 3],
        hflip=0.5,
        vflip=0.0,
        color_jitter=0.4,
        color_jitter_prob=None,
        grayscale_prob=None,
        gaussian_blur_prob=None,
        auto_augment="rand-m6-mstd0.5-inc1",
        num_aug_repeats=0,
        num_aug_splits=0,
        interpolation="random",
        num_workers=1,
        worker_seeding="all",
        **common,
    )
    # As validate.py calls it; train.py leaves the last three arguments out.
    loader_eval = create_loader(
        eval_set,
        input_size=(3, 32, 32),
        batch_size=16,
        is_training=False,
        interpolation="bicubic",
        num_workers=1,
        crop_pct=0.95,
        crop_mode="center",
        crop_border_pixels=None,
        tf_preprocessing=False,
        **common,
    )
    tops = _timm_loop(loader_train, loader_eval, _small_model(), epochs=3, mixup_off_epoch=2)
    assert len(tops) == 3
    assert not loader_train.mixup_enabled


def _small_model():
    return nn.Sequential(nn.Conv2d(3, 8, 5, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def test_a_caller_like_torchvisions_train_script(data):
    """All that references/classification/train.py does with its loaders, call by call."""
    from torch.utils.data import RandomSampler, SequentialSampler
    from torchvision.datasets import ImageFolder

    from dali_rsb import DaliLoader

    dataset, dataset_test = ImageFolder(str(data / "train")), ImageFolder(str(data / "val"))
    options = {"size_px": 32, "interpolation": "bilinear", "device": CPU, "num_threads": 1}
    data_loader = DaliLoader(
        dataset, 16, train=True, drop_last=False, sampler=RandomSampler(dataset), **options
    )
    data_loader_test = DaliLoader(
        dataset_test, 16, sampler=SequentialSampler(dataset_test), resize_px=36, **options
    )
    model = _small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        model.train()
        batches = iter(data_loader)
        for _ in range(len(data_loader)):
            images, targets = next(batches)
            images, targets = images.to(CPU), targets.to(CPU)
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with pytest.raises(StopIteration):
            next(batches)
        model.eval()
        num_processed = 0
        with torch.inference_mode():
            for images, targets in data_loader_test:
                images = images.to(CPU, non_blocking=True)
                targets = targets.to(CPU, non_blocking=True)
                nn.functional.cross_entropy(model(images), targets)
                num_processed += images.shape[0]
        assert hasattr(data_loader_test.dataset, "__len__")
        assert len(data_loader_test.dataset) == num_processed


@pytest.mark.slow
def test_timms_train_script(data, tmp_path):
    source = _source("TIMM_SOURCE")
    script = _swap(source / "train.py", tmp_path / "train.py", TIMM_IMPORT)
    arguments = "--model test_resnet --img-size 32 --num-classes 10 --device cpu -j 1 -b 32"
    arguments += " --opt lamb --lr 5e-3 --epochs 2 --warmup-epochs 0 --bce-loss --smoothing 0"
    arguments += " --mixup .1 --cutmix 1 --mixup-off-epoch 1 --aa rand-m6-mstd0.5-inc1"
    arguments += " --model-ema --output out --experiment run"
    output = _run(script, "--data-dir", data, *arguments.split(), cwd=tmp_path, path=[source])
    assert "DALI does not do" not in output
    rows = (tmp_path / "out/run/summary.csv").read_text().splitlines()
    assert len(rows) == 3


@pytest.mark.slow
def test_timms_validate_script_gives_the_same_result(photo_folder, tmp_path):
    source = _source("TIMM_SOURCE")
    import timm

    torch.manual_seed(0)
    checkpoint = tmp_path / "model.pth"
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), checkpoint)
    ours = _swap(source / "validate.py", tmp_path / "validate.py", TIMM_IMPORT)
    arguments = "--model test_resnet --num-classes 2 --device cpu -j 1 -b 5 --img-size 96"
    results = []
    for script in (source / "validate.py", ours):
        data = ["--data-dir", photo_folder, "--checkpoint", checkpoint]
        output = _run(script, *data, *arguments.split(), cwd=tmp_path, path=[source])
        assert "DALI does not do" not in output
        result = output[output.index("--result\n") + len("--result\n") :]
        results.append(json.JSONDecoder().raw_decode(result)[0])
    assert results[0] == results[1]


@pytest.mark.slow
def test_torchvisions_train_script(data, tmp_path):
    source = _source("TORCHVISION_SOURCE") / "references/classification"
    shutil.copytree(source, tmp_path / "classification")
    loader = r"{} = torch\.utils\.data\.DataLoader\(.*?\n    \)"
    script = _swap(
        source / "train.py",
        tmp_path / "classification/train.py",
        (r"\nimport torch\n", "\nimport torch\nfrom dali_rsb import DaliLoader\n"),
        (
            loader.format("data_loader"),
            "data_loader = DaliLoader(dataset, args.batch_size, train=True, drop_last=False, "
            "sampler=train_sampler, size_px=args.train_crop_size, device=device)",
        ),
        (
            loader.format("data_loader_test"),
            "data_loader_test = DaliLoader(dataset_test, args.batch_size, sampler=test_sampler, "
            "size_px=args.val_crop_size, resize_px=args.val_resize_size, device=device)",
        ),
    )
    arguments = "--model mobilenet_v3_small --device cpu -b 32 --epochs 1 --train-crop-size 32"
    arguments += " --val-crop-size 32 --val-resize-size 36 --output-dir out"
    output = _run(script, "--data-path", data, *arguments.split(), cwd=tmp_path)
    assert "Acc@1" in output
    assert "might bias the results" not in output
    assert (tmp_path / "out/checkpoint.pth").exists()


class _Seen(nn.Module):
    """A model that remembers the sums of the batches it was trained on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 10)
        self.sums = []

    def forward(self, images):
        if self.training:
            self.sums.append(images.sum().item())
        return self.layer(images.mean((2, 3)))


def _loaders(data, **options):
    from dali_rsb import DaliLoader

    common = {"size_px": 16, "device": CPU, "num_threads": NUM_THREADS}
    train_loader = DaliLoader(data / "train", 64, train=True, **common, **options)
    return train_loader, DaliLoader(data / "val", 64, **common)


def _expected_sums(data, epochs):
    train_loader, _ = _loaders(data)
    return [images.sum().item() for _ in range(epochs) for images, _ in train_loader]


# The callback that wrote the checkpoint is not among the second trainer's, on purpose.
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_lightning(data, tmp_path):
    lightning = pytest.importorskip("lightning")
    seen = _Seen()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = seen

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.log("correct", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    train_loader, val_loader = _loaders(data)
    trainer = lightning.Trainer(max_epochs=3, enable_checkpointing=False, **options)
    trainer.fit(Module(), train_loader, val_loader)
    assert trainer.global_step == 12
    assert seen.sums == _expected_sums(data, 3)
    assert "correct" in trainer.callback_metrics
    trainer.validate(Module(), val_loader, verbose=False)

    # A checkpoint from the middle of an epoch holds where the loader stood.
    train_loader, val_loader = _loaders(data)
    every_5 = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5)
    trainer = lightning.Trainer(max_steps=5, limit_val_batches=0, callbacks=[every_5], **options)
    trainer.fit(Module(), train_loader, val_loader)
    seen.sums.clear()
    train_loader, val_loader = _loaders(data)
    trainer = lightning.Trainer(max_steps=12, limit_val_batches=0, **options)
    trainer.fit(Module(), train_loader, val_loader, ckpt_path=tmp_path / "step=5.ckpt")
    assert seen.sums == _expected_sums(data, 3)[5:]


def test_accelerate(data):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, (train_loader, val_loader) = _Seen(), _loaders(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, train_loader, val_loader = accelerator.prepare(
        model, optimizer, train_loader, val_loader
    )
    for epoch in range(2):
        model.train()
        train_loader.set_epoch(epoch)
        for images, targets in train_loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(images), targets))
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        with torch.inference_mode():
            gathered = [accelerator.gather_for_metrics(targets) for _, targets in val_loader]
        assert len(torch.cat(gathered)) == 60
    assert model.sums == _expected_sums(data, 2)


EXAMPLES = {
    "pytorch_loop": None,
    "timm_loader": "timm",
    "lightning_trainer": "lightning",
    "accelerate_loop": "accelerate",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name, data, tmp_path):
    needs = EXAMPLES[name]
    if needs is not None and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    arguments = [data, "--size", 16, "--batch-size", 64, "--epochs", 2]
    result = run_script(ROOT / f"examples/{name}.py", *arguments, cwd=tmp_path)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "top-1" in output
    assert "DALI does not do" not in output
    if name == "pytorch_loop":
        assert torch.load(tmp_path / "pytorch_loop.pt")["loader"]["epoch"] == 2
