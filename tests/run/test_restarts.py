"""The launcher starts a run again after a rank died, and the result is the undisturbed one's."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT, SERVER
from killed_runs import write_recipe

from dali_rsb import train
from dali_rsb.errors import run_command
from dali_rsb.run.checkpoint import load_checkpoint

PROGRAM = Path(__file__).with_name("restarted_run.py")
CONFIG = """
data: {{train: {root}/train, val: {root}/val, threads: 1}}
augment: {{size: 32}}
mixing: {{mixup: 0.1}}
model: {{name: "timm:test_resnet", num_classes: 2}}
optimizer: {{name: lamb, batch_size: 16, lr: 5e-3}}
schedule: {{epochs: 2, warmup_epochs: 0}}
evaluation: {{size: 32, batch_per_device: 8}}
run: {{device: cpu, checkpoint_every: 1, warm_up: false, batch_per_device: 8}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A configuration of 8 updates: 64 images, 4 updates an epoch, 2 epochs."""
    return write_recipe(tmp_path_factory.mktemp("data"), CONFIG, num_val=4)


def _rank(recipe, folder, rank, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = ["train", str(recipe), f"run.dir={folder}"]
    run_command(train.main)


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    port = _free_port()
    ranks = [SERVER.Process(target=_rank, args=(recipe, folder, rank, port)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    return folder


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _launcher(recipe, folder, what, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv_backend=c10d", *options]
    command += [PROGRAM, "2", what, recipe, f"run.dir={folder}", "--resume", "auto"]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _assert_same_weights(folder, undisturbed):
    got, expected = (load_checkpoint(path / "last.pt") for path in (folder, undisturbed))
    assert got["updates_done"] == expected["updates_done"] == 8
    for name, _ in timm.create_model("test_resnet", num_classes=2).named_parameters():
        assert torch.equal(got["model"][name], expected["model"][name]), name


def test_a_restarted_run_ends_as_the_undisturbed_one(recipe, undisturbed, tmp_path):
    options = ["--rdzv_endpoint=localhost:0", "--nproc_per_node=2", "--max-restarts=1"]
    launcher = _launcher(recipe, tmp_path / "run", "process", *options)
    output, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, output
    assert "resuming at epoch 1, update 3" in output
    _assert_same_weights(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_the_others_go_on_where_a_node_is_lost(recipe, undisturbed, tmp_path):
    """Two launchers of one process each, as on two nodes; one is killed with its process."""
    port = _free_port()
    options = [f"--rdzv_endpoint=localhost:{port}", "--rdzv_id=lost", "--nnodes=1:2"]
    options += ["--nproc_per_node=1", "--max-restarts=3", "--rdzv_conf=last_call_timeout=5"]
    both = [_launcher(recipe, tmp_path / "run", "launcher", *options) for _ in range(2)]
    outputs = [launcher.communicate(timeout=280)[0] for launcher in both]
    codes = [launcher.returncode for launcher in both]
    assert sorted(codes) == [-9, 0], outputs
    output = outputs[codes.index(0)]
    assert "resuming at epoch 1, update 3" in output
    assert "8 a device x 1 device(s) x 2 accumulation" in output
    _assert_same_weights(tmp_path / "run", undisturbed)
