"""What a checkpoint holds of two ranks, and what a run that goes on takes from it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dali_rsb.config import override_config
from dali_rsb.errors import UserError
from dali_rsb.models.precision import Precision
from dali_rsb.optim.loss_scale import LossScaler
from dali_rsb.run.checkpoint import FORMAT_VERSION
from dali_rsb.run.meter import Meter
from dali_rsb.run.processes import Processes
from dali_rsb.training.losses import create_loss
from dali_rsb.training.run_state import restore_run, run_state
from dali_rsb.training.step import TrainStep

CPU = torch.device("cpu")
CONFIG = override_config({"name": "x", "schedule": {"epochs": 9, "warmup_epochs": 0}}).model_dump(
    mode="json"
)


class _First(Processes):
    """Rank 0 of two, whose other rank has norm statistics three times as large."""

    def gather(self, value):
        other = {
            part: {name: 3 * tensor for name, tensor in tensors.items()}
            for part, tensors in value["norm_statistics"].items()
        }
        return [value, {"partial_sums": value["partial_sums"] + 1, "norm_statistics": other}]


def _step(scale=2.0**16):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    step = TrainStep(
        model,
        create_loss("ce"),
        torch.optim.SGD(model.parameters(), 0.1),
        None,
        Precision(CPU, None),
        Processes(CPU),
        accumulation=1,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    step.scaler = LossScaler(CPU, init_scale=scale)
    return step


@pytest.fixture
def saved(tmp_path):
    """The path of a checkpoint of two ranks, and the step that it was made of."""
    step = _step(scale=8.0)
    step.scaler._growth_tracker.fill_(7)
    step.updates_done = 21
    step.model[1].running_mean += torch.tensor([1.0, 2.0])
    meter = Meter(Processes(CPU), images_per_update=4)
    state = run_state(
        step, meter, 10, 62.5, True, CONFIG, [], _First(CPU, world_size=2, rank=0), "of trackers"
    )
    path = tmp_path / "last.pt"
    torch.save({"format_version": FORMAT_VERSION, **state}, path)
    return path, step, state


def _restored(path, processes, per_epoch=10, config=CONFIG):
    step = _step()
    index = SimpleNamespace(classes=[])
    return step, restore_run(path, step, per_epoch, config, CONFIG, index, processes)


def test_statistics_of_the_ranks_are_averaged_in_a_checkpoint(saved):
    _, step, state = saved
    own = step.model[1]
    assert torch.equal(state["model"]["1.running_mean"], 2 * own.running_mean)
    assert torch.equal(state["model"]["1.running_var"], 2 * own.running_var)
    assert torch.equal(state["model"]["0.weight"], step.model[0].weight)
    assert own.running_mean.tolist() == [1.0, 2.0]  # the step's stay its own


def test_later_updates_change_nothing_of_a_state():
    """It is written while the run goes on: what it shared would be of two updates."""
    step, meter = _step(), Meter(Processes(CPU), images_per_update=4)
    step.model.register_buffer("counts", torch.zeros(2, dtype=torch.int64))
    for parameter in step.model.parameters():
        step.optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    state = run_state(step, meter, 10, 0.0, False, CONFIG, [], Processes(CPU))
    before = copy.deepcopy(state)
    living = [leaf for leaf in tree_leaves(step.state_dict()) if isinstance(leaf, Tensor)]
    assert len(living) == 9 + 1 + 6  # of the model, the counts, the optimizer
    with torch.no_grad():
        for tensor in living:
            tensor.add_(1)
    for now, then in zip(tree_leaves(state), tree_leaves(before), strict=True):
        assert torch.equal(now, then) if isinstance(now, Tensor) else now == then


def test_a_run_goes_on_where_the_checkpoint_stands(saved):
    path, before, _ = saved
    step, progress = _restored(path, Processes(CPU))
    assert step.updates_done == 21
    assert step.scaler.state_dict() == before.scaler.state_dict()
    assert step.scaler.tensor.item() == 8.0
    assert (progress.best_top1, progress.is_epoch_open) == (62.5, True)
    assert progress.run_id == "of trackers"
    assert [len(sums) for sums in progress.partial_sums] == [4, 4]
    assert progress.meter["updates"] == 0
    assert step.model[1].running_mean.tolist() == [2.0, 4.0]  # one process: the mean


@pytest.mark.parametrize(("rank", "mean"), [(0, [1.0, 2.0]), (1, [3.0, 6.0])])
def test_each_of_two_ranks_gets_its_own_statistics_back(saved, rank, mean):
    step, _ = _restored(saved[0], Processes(CPU, rank=rank, world_size=2))
    assert step.model[1].running_mean.tolist() == mean


def test_positions_are_counted_in_epochs_of_the_run_that_goes_on(saved):
    path, _, state = saved
    with pytest.raises(UserError, match=r"middle of an epoch of 10 updates, this run's have 5"):
        _restored(path, Processes(CPU), per_epoch=5)
    torch.save({"format_version": FORMAT_VERSION, **state, "updates_done": 20}, path)
    step, _ = _restored(path, Processes(CPU), per_epoch=5)
    assert step.updates_done == 10


def test_a_change_of_the_recipe_is_told_and_one_of_the_paths_is_not(saved, caplog):
    config = {**CONFIG, "optimizer": {**CONFIG["optimizer"], "lr": 0.25}}
    config["data"] = {**CONFIG["data"], "train": "/elsewhere", "val_fraction": 0.2}
    _restored(saved[0], Processes(CPU), config=config)
    assert [message.partition(", was")[0] for message in caplog.messages] == [
        "resuming with optimizer.lr=0.25",
        "resuming with data.val_fraction=0.2",
    ]
