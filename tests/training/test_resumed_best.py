"""The best accuracy of a run that goes on."""

import torch
from conftest import ROOT

from dali_rsb.config import load_config
from dali_rsb.run.checkpoint import FORMAT_VERSION, load_checkpoint
from dali_rsb.run.meter import Meter
from dali_rsb.run.processes import Processes
from dali_rsb.training.assembly import build_trainer
from dali_rsb.training.run_state import run_state

CPU = Processes(torch.device("cpu"))


def test_a_worse_epoch_leaves_the_best_checkpoint(digits, tmp_path):
    config = load_config(
        ROOT / "configs" / "quickstart.yaml",
        [
            *(f"data.digits={digits}", "data.threads=1", "augment.size=16", "evaluation.size=16"),
            *("optimizer.batch_size=16", "run.device=cpu", "run.max_steps=2", "run.warm_up=false"),
        ],
    )
    first = build_trainer(config, CPU)
    first.step.updates_done = 1
    per_epoch, classes = first.samples.updates_per_epoch, first.samples.index.classes
    tree, meter = config.model_dump(mode="json"), Meter(CPU, 16)
    state = run_state(first.step, meter, per_epoch, 99.5, False, tree, classes, CPU)
    torch.save({"format_version": FORMAT_VERSION, **state}, tmp_path / "last.pt")
    build_trainer(config, CPU, tmp_path / "last.pt").run(tmp_path)
    last = load_checkpoint(tmp_path / "last.pt")
    assert (last["updates_done"], last["best_top1"]) == (2, 99.5)
    assert not (tmp_path / "best.pt").exists()
