"""Reading configurations: the recipes' values, overrides, and errors that name the mend."""

from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from dali_rsb.config import load_config, override_config
from dali_rsb.errors import UserError
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
        ("schedule.warmup_epochs=200", r"schedule.warmup_epochs: must not exceed"),
        ("loss.name=ce", r"loss.target_threshold: only loss.name=bce"),
        ("run.batch_per_device=20", r"run.batch_per_device: must be a multiple of 8"),
        ("data.digits=here", r"digits"),
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
