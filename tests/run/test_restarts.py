"""The launcher starts a run again after a rank died, and the result is the undisturbed one's."""

import os
import shutil
import socket
import subprocess
import sys
import time
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


def _launcher(recipe, folder, what, *options, within=(), output=subprocess.PIPE, **environment):
    """Start torchrun; `within` is a command that starts commands elsewhere."""
    command = [*within, sys.executable, "-m", "torch.distributed.run", "--rdzv_backend=c10d"]
    command += [*options, PROGRAM, "2", what, recipe, f"run.dir={folder}", "run.timeout=20"]
    return subprocess.Popen(
        [*map(str, command), "--resume", "auto"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=output,
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


def _two_launchers(recipe, folder, what):
    """Two launchers of one process each, as on two nodes: what they say, and their exit codes."""
    options = [f"--rdzv_endpoint=localhost:{_free_port()}", "--rdzv_id=lost", "--nnodes=1:2"]
    options += ["--nproc_per_node=1", "--max-restarts=3", "--rdzv_conf=last_call_timeout=5"]
    both = [_launcher(recipe, folder, what, *options) for _ in range(2)]
    outputs = [launcher.communicate(timeout=280)[0] for launcher in both]
    return outputs, [launcher.returncode for launcher in both]


@pytest.mark.slow
def test_the_others_go_on_where_a_node_is_lost(recipe, undisturbed, tmp_path):
    outputs, codes = _two_launchers(recipe, tmp_path / "run", "launcher")
    assert sorted(codes) == [-9, 0], outputs
    output = outputs[codes.index(0)]
    assert "resuming at epoch 1, update 3" in output
    assert "8 a device x 1 device(s) x 2 accumulation" in output
    _assert_same_weights(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_nodes_that_count_their_restarts_differently_meet(recipe, undisturbed, tmp_path):
    """The node of a process that died counts a restart, the other one a change of members."""
    outputs, codes = _two_launchers(recipe, tmp_path / "run", "process")
    assert codes == [0, 0], outputs
    assert "resuming at epoch 1, update 3" in "".join(outputs)
    _assert_same_weights(tmp_path / "run", undisturbed)


@pytest.fixture
def two_nodes():
    """Two network namespaces that reach each other: a command that starts commands in each."""
    names = [f"dali_rsb-{os.getpid()}-{node}" for node in range(2)]
    setup = [
        *(f"netns add {name}" for name in names),
        f"link add d0 netns {names[0]} type veth peer name d1 netns {names[1]}",
    ]
    for node, name in enumerate(names):
        setup.append(f"-n {name} address add 10.213.0.{node + 1}/24 dev d{node}")
        setup += [f"-n {name} link set {device} up" for device in ("lo", f"d{node}")]
    try:
        for words in setup:
            if not shutil.which("ip") or subprocess.run(["ip", *words.split()]).returncode:
                pytest.skip("network namespaces need root, and the command ip")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_was_cut_off_comes_back(recipe, undisturbed, two_nodes, tmp_path):
    """2 nodes, then 1, then 2: the one that is cut off gets a new launcher once it is reachable."""
    options = ["--rdzv_endpoint=10.213.0.1:29400", "--rdzv_id=cut", "--nnodes=1:2"]
    options += ["--nproc_per_node=1", "--max-restarts=3"]

    def start(node, what, output):
        return _launcher(
            *(recipe, tmp_path / "run", what, *options, f"--local-addr=10.213.0.{node + 1}"),
            f"--rdzv_conf=last_call_timeout=5,is_host={int(node == 0)}",
            within=two_nodes[node],
            output=(tmp_path / output).open("w"),
            # Otherwise torchrun tells the address of rank 0 at its first start only.
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
            GLOO_SOCKET_IFNAME=f"d{node}",
            CUT=f"d{node}",
        )

    def wait_for(words, output):
        deadline_s = time.monotonic() + 150
        while words not in (said := (tmp_path / output).read_text()):
            assert time.monotonic() < deadline_s, said
            time.sleep(0.2)

    first, cut = start(0, "network", "first"), start(1, "network", "cut")
    wait_for("rank 0: does not answer for", "cut")
    wait_for("resuming at epoch 1, update 3", "first")
    cut.kill()  # as Slurm does with what ran on a node that was down
    subprocess.run([*two_nodes[1], "ip", "link", "set", "d1", "up"], check=True)
    back = start(1, "nothing", "back")
    codes = [launcher.wait(200) for launcher in (first, back)]
    said = (tmp_path / "first").read_text()
    assert codes == [0, 0], said + (tmp_path / "back").read_text()
    assert "rank 1: does not answer for 20 s (run.timeout)" in said
    assert said.count("8 a device x 2 device(s) x 1 accumulation") == 2
    assert said.count("8 a device x 1 device(s) x 2 accumulation") == 1
    assert "asked to stop: saved" in said
    _assert_same_weights(tmp_path / "run", undisturbed)
