"""Two nodes, one is cut off and comes back: the other goes on, and the weights are the right ones.

A node is a network namespace of this machine, with a launcher of its own; both see the same files,
as on a cluster's shared file system.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT
from killed_runs import end, start_two, write_recipe

from dali_rsb.run.checkpoint import load_checkpoint

PROGRAM = Path(__file__).with_name("slowed_run.py")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
OVERRIDES = ["schedule.epochs=8", "run.batch_per_device=8", "run.timeout=5"]
SLOWED_S = 1.5


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes():
    """Names of two namespaces; the link of each has the name of its namespace."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("making network namespaces needs root and iproute2")
    names = [f"node{i}-{os.getpid()}"[:15] for i in range(2)]
    try:
        for name in names:
            _ip("netns", "add", name)
        peer = ["peer", "name", names[1], "netns", names[1]]
        _ip("link", "add", names[0], "netns", names[0], "type", "veth", *peer)
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            _ip("-n", name, "link", "set", name, "up")
            _ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    yield names
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False)


class _Node:
    """A launcher on one node, and what it and its worker said."""

    def __init__(self, name, address, recipe, folder, output):
        self._output = output
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"]
        command += ["--rdzv_backend=c10d", f"--rdzv_endpoint={ADDRESSES[0]}:29400"]
        command += ["--rdzv_id=cut", "--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=9"]
        command += ["--rdzv_conf=last_call_timeout=5,keep_alive_interval=2"]
        command += [f"--local_addr={address}", PROGRAM, str(SLOWED_S), recipe]
        command += [f"run.dir={folder}", *OVERRIDES, "--resume", "auto"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": name}
        with output.open("a") as file:
            self._launcher = subprocess.Popen(
                list(map(str, command)),
                env={**environment, "PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def said(self):
        return self._output.read_text()

    def wait_for(self, text, limit_s=150):
        deadline_s = time.monotonic() + limit_s
        while text not in self.said():
            assert self._launcher.poll() is None, self.said()
            assert time.monotonic() < deadline_s, f"never said {text}:\n{self.said()}"
            time.sleep(0.2)

    def end(self):
        return self._launcher.wait(300)

    def kill(self):
        if self._launcher.poll() is None:
            os.killpg(self._launcher.pid, signal.SIGKILL)
        self._launcher.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_is_cut_off_comes_back(nodes, tmp_path):
    recipe = write_recipe(tmp_path)
    pair = start_two(recipe, tmp_path / "undisturbed", overrides=OVERRIDES[:2])
    assert [end(process, 400) for process in pair] == [0, 0]

    def start(number, attempt):
        output = tmp_path / f"{number}-{attempt}.txt"
        return _Node(nodes[number], ADDRESSES[number], recipe, tmp_path / "run", output)

    first, second = start(0, 0), start(1, 0)
    started = [first, second]
    try:
        first.wait_for("epoch 1/8")
        _ip("-n", nodes[1], "link", "set", nodes[1], "down")
        cut_s = time.monotonic()
        first.wait_for("8 a device x 1 device(s) x 2 accumulation")
        print(f"alone {time.monotonic() - cut_s:.0f} s after the cut")
        second.wait_for("; rank ", limit_s=30)
        print(second.said()[-3000:])
        second.kill()
        _ip("-n", nodes[1], "link", "set", nodes[1], "up")
        third = start(1, 1)
        started.append(third)
        codes = [first.end(), third.end()]
        print(first.said()[-6000:], third.said()[-3000:])
    finally:
        for node in started:
            node.kill()
    assert codes == [0, 0]
    assert first.said().count("resuming at") >= 2
    assert first.said().rindex("x 2 device(s)") > first.said().index("x 1 device(s)")
    got, expected = (
        load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "undisturbed")
    )
    assert got["updates_done"] == expected["updates_done"] == 32
    for name, _ in timm.create_model("test_resnet", num_classes=2).named_parameters():
        assert torch.equal(got["model"][name], expected["model"][name]), name
