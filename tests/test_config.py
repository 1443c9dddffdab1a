"""Reading configurations: the recipes' values, overrides, and errors that name the fix."""

from pathlib import Path

import pytest
import timm
import torch
import yaml
from pydantic import ValidationError

from dali_rsb.config import load_config, override_config
from dali_rsb.errors import UserError
from dali_rsb.models import create_model
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import device_batch

CONFIGS = Path(__file__).parent.parent / "configs"


def _values(config):
    """The numbers by which the recipes differ, under short names."""
    return {
        "size": config.augment.size,
        "randaugment": config.augment.randaugment,
        "repeats": config.augment.repeats,
        "mixup": config.mixing.mixup,
        "cutmix": config.mixing.cutmix,
        "drop_path": config.model.drop_path,
        "smoothing": config.loss.smoothing,
        "threshold": config.loss.target_threshold,
        "batch": config.optimizer.batch_size,
        "lr": config.optimizer.lr,
        "weight_decay": config.optimizer.weight_decay,
        "epochs": config.schedule.epochs,
        "warmup": (config.schedule.warmup_epochs, config.schedule.warmup_lr),
        "min_lr": config.schedule.min_lr,
        "test": (config.evaluation.size, config.evaluation.crop_ratio),
    }


COMMON = {
    "cutmix": 1.0,
    "batch": 2048,
    "warmup": (5, 1e-4),
    "min_lr": 1e-6,
    "test": (224, 0.95),
}
# Table 2 of ResNet strikes back, as checked against reproductions.
RECIPES = {
    "a1": {
        **COMMON,
        "size": 224,
        "randaugment": "rand-m7-mstd0.5-inc1",
        "repeats": 3,
        "mixup": 0.2,
        "drop_path": 0.05,
        "smoothing": 0.1,
        "threshold": None,
        "lr": 5e-3,
        "weight_decay": 0.01,
        "epochs": 600,
    },
    "a2": {
        **COMMON,
        "size": 224,
        "randaugment": "rand-m7-mstd0.5-inc1",
        "repeats": 3,
        "mixup": 0.1,
        "drop_path": 0.05,
        "smoothing": 0.0,
        "threshold": 0.2,
        "lr": 5e-3,
        "weight_decay": 0.02,
        "epochs": 300,
    },
    "a3": {
        **COMMON,
        "size": 160,
        "randaugment": "rand-m6-mstd0.5-inc1",
        "repeats": 1,
        "mixup": 0.1,
        "drop_path": 0.0,
        "smoothing": 0.0,
        "threshold": 0.2,
        "lr": 8e-3,
        "weight_decay": 0.02,
        "epochs": 100,
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_the_published_values(name):
    assert _values(load_config(CONFIGS / f"{name}.yaml")) == RECIPES[name]


# Image size, RandAugment, stochastic depth and parameters: the rows of the released configurations
# of ResNet-RS that are here, and timm's count.
RESNET_RS = {
    "resnetrs50": (160, "rand-m10-n2", 0.0, 35_691_912),
    "resnetrs101": (192, "rand-m15-mmax15-n2", 0.0, 63_618_696),
    "resnetrs152": (256, "rand-m15-mmax15-n2", 0.0, 86_621_576),
    "resnetrs200": (256, "rand-m15-mmax15-n2", 0.1, 93_209_992),
}


@pytest.mark.parametrize("name", RESNET_RS)
def test_resnet_rs_holds_the_published_values(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    size, randaugment, drop_path, num_parameters = RESNET_RS[name]
    assert (config.augment.size, config.evaluation.size) == (size, size)
    assert config.augment.randaugment == randaugment
    assert (config.model.drop_path, config.model.dropout) == (drop_path, 0.25)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.batch_size, optimizer.lr) == ("sgd", 4096, 1.6)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 4e-5)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (350, 5)
    assert (config.loss.name, config.loss.smoothing, config.ema.decay) == ("ce", 0.1, 0.9999)
    with torch.device("meta"):
        models = create_model(config.model.name), timm.create_model(config.model.name)
    for model in models:
        assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cycle_epochs=10"], r"schedule.cycle_epochs: goes with schedule.name=restarts; set both"),
        (["name=restarts"], r"schedule.cycle_epochs: goes with schedule.name=restarts; set both"),
        (["name=restarts", "cycle_epochs=30"], r"schedule.epochs: .*; set 90 or 120"),
        (
            ["name=restarts", "cycle_epochs=10", "cycle_growth=2"],
            r"schedule.epochs: ends within a cycle.*; set 70 or 150",
        ),
        (["name=restarts", "cycle_epochs=200"], r"schedule.epochs: .*high learning rate; set 200"),
        (
            ["name=restarts", "cycle_epochs=4", "warmup_epochs=5"],
            r"schedule.warmup_epochs: must not exceed schedule.cycle_epochs",
        ),
    ],
)
def test_a_run_ends_with_a_cycle(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(CONFIGS / "a3.yaml", [f"schedule.{override}" for override in overrides])


@pytest.mark.parametrize(("epochs", "growth"), [(100, 1), (70, 2), (10, 2), (130, 3)])
def test_the_answers_to_a_run_that_ends_within_a_cycle_are_right(epochs, growth):
    overrides = ["name=restarts", "cycle_epochs=10", f"cycle_growth={growth}", f"epochs={epochs}"]
    config = load_config(CONFIGS / "a3.yaml", [f"schedule.{override}" for override in overrides])
    assert config.schedule.cycle_ends()[-1] == epochs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_round_trip(path):
    config = load_config(path)
    assert config.name == path.stem
    stored = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert override_config(stored) == config


def test_overrides_come_last_and_read_numbers_as_people_write_them():
    config = load_config(
        CONFIGS / "a3.yaml",
        ["optimizer.lr=1e-3", "data.train=/images", "ema.decay=0.999", "run.compile=true"],
    )
    assert config.optimizer.lr == 1e-3
    assert config.data.train == Path("/images")
    assert config.ema.decay == 0.999
    assert config.run.compile is True


def test_the_tree_is_frozen():
    config = load_config(CONFIGS / "a3.yaml")
    with pytest.raises(ValidationError):
        config.optimizer.lr = 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", r"unknown key optimizer.lrr; did you mean optimizer.lr\?"),
        ("optimiser.lr=1", r"unknown key optimiser; did you mean optimizer\?"),
        ("model.lr=1", r"unknown key model.lr; did you mean optimizer.lr\?"),
        ("lr=1", r"write overrides as section.key=value; did you mean optimizer.lr\?"),
        ("optimizer.lr", r"write overrides as section.key=value"),
        ("optimizer.lr=fast", r"optimizer.lr: input should be a valid number, got 'fast'"),
        ("optimizer.batch_size=2.5", r"optimizer.batch_size: .*integer.*got 2.5"),
        ("optimizer.batch_size=true", r"optimizer.batch_size: .*integer.*got True"),
        ("optimizer.batch_size=0", r"optimizer.batch_size: .*greater than 0, got 0"),
        ("augment.interpolation=nearest", r"augment.interpolation: .*'random'.*got 'nearest'"),
        ("augment.scale=[0.5, 0.1]", r"augment.scale: must be \[low, high\]"),
        ("augment.randaugment=rand-q3", r"rand-q3|q3"),
        ("augment.backend=cuda", r"augment.backend: .*'triton' or 'numba', got 'cuda'"),
        ("schedule.warmup_epochs=200", r"schedule.warmup_epochs: must not exceed"),
        ("loss.name=ce", r"loss.target_threshold: only loss.name=bce"),
        ("run.batch_per_device=20", r"run.batch_per_device: must be a multiple of 8"),
        ("data.digits=here", r"digits"),
        (
            "augment.erase_mode=noise",
            r"augment.erase_mode: .*'rand' or 'pixel', got 'noise'",
        ),
        ("optimizer.layer_decay=0", r"optimizer.layer_decay: .*greater than 0, got 0"),
        ("optimizer.layer_decay=1.5", r"optimizer.layer_decay: .*less than or equal to 1, got 1.5"),
    ],
)
def test_mistakes_name_the_key_and_the_mend(override, message):
    overrides = ["data.train=/images", override]
    with pytest.raises(UserError, match=message) as caught:
        load_config(CONFIGS / "a3.yaml", overrides)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*absent.yaml"):
        load_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: [")
    with pytest.raises(UserError, match=r"broken.yaml is not YAML"):
        load_config(broken)
    broken.write_text("just words")
    with pytest.raises(UserError, match="must hold sections"):
        load_config(broken)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_quickstart_runs_on_any_number_of_processes(processes):
    config = load_config(CONFIGS / "quickstart.yaml", [])
    alike = Processes(torch.device("cpu"), world_size=processes, local_world_size=processes)
    assert device_batch(config, alike) == 64 // processes
