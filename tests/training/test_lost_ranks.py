"""Whatever happens to one of two ranks of a training, the other ends soon, and one says why.

`tests/run/test_watch.py` tries the same without a training, as exceptions; here the faults are
real: signals, allocations that fail, files that cannot be decoded, a file system that is full.
"""

import os
import re
import resource
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from killed_runs import end, start_two, write_recipe

from dali_rsb.run.watch import BEAT_S

LIMIT_S = 30  # within which the other rank ends
TIMEOUT_S = 5  # run.timeout: a silent rank is given up after it
CONTROL_GROUPS = "/sys/fs/cgroup/memory"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("data"))


def _at_update(number, strike):
    """Let a fault strike at the beginning of an update."""
    from dali_rsb.training.step import TrainStep

    update = TrainStep.update

    def struck(self, batches):
        if self.updates_done == number:
            Path(f"{os.getpid()}.struck").touch()
            strike()
        return update(self, batches)

    TrainStep.update = struck


def _signal(number):
    time.sleep(4 * BEAT_S)  # until the others have heard what this one is at
    os.kill(os.getpid(), number)


def _allocate_too_much():
    """Ask for more memory than the address space has left."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit_bytes = pages * resource.getpagesize() + 2**26
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, resource.RLIM_INFINITY))
    torch.ones(2**28)


def _be_killed_for_memory():
    """Fill a control group of this process alone, until the kernel kills it."""
    group = Path(CONTROL_GROUPS, f"dali_rsb-{os.getpid()}")
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(2**27))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    torch.ones(2**28)


def _fault(kind):
    return {
        "killed": partial(_signal, signal.SIGKILL),
        "stopped": partial(_signal, signal.SIGSTOP),
        "out of memory": _allocate_too_much,
        "killed for memory": _be_killed_for_memory,
    }[kind]


def _run(recipe, folder, rank, prepare, *overrides):
    """Start two ranks, of which one prepares a fault."""
    prepares = [None, None]
    prepares[rank] = prepare
    return start_two(recipe, folder, prepares, [f"run.timeout={TIMEOUT_S}", *overrides])


def _said(folder):
    return "".join(Path(f"{folder}.{rank}.out").read_text() for rank in range(2))


def _strike(recipe, folder, rank, kind):
    """Let a fault strike one rank in an update; what was said, and the other's exit code."""
    update = 0 if kind == "killed" else 5
    both = _run(recipe, folder, rank, partial(_at_update, update, _fault(kind)))
    lost, other = both[rank], both[1 - rank]
    struck = folder.parent / f"{lost.pid}.struck"
    while not struck.exists():
        assert lost.is_alive(), _said(folder)
        time.sleep(0.02)
    try:
        code = end(other, LIMIT_S)
    finally:
        if kind != "out of memory":
            lost.kill()
        end(lost)
    return _said(folder), code


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["killed", "stopped", "out of memory", "killed for memory"])
def test_the_other_rank_ends_and_says_why(recipe, tmp_path, monkeypatch, kind, rank):
    monkeypatch.chdir(tmp_path)
    said, code = _strike(recipe, tmp_path / "run", rank, kind)
    assert code == 1
    line = {
        "killed": f"rank {rank}: died without a word (killed, out of memory?)",
        "killed for memory": f"rank {rank}: died without a word (killed, out of memory?)",
        "stopped": f"rank {rank}: does not answer for",
        "out of memory": f"rank {rank}: RuntimeError:",
    }[kind]
    assert len(re.findall(re.escape(line), said)) == 1, said
    if kind == "killed" and rank == 1:  # rank 0 keeps the store, and takes it along
        assert "update 1/4; nothing loaded yet" in said
    assert "Process ForkServerProcess" not in said  # an error that nobody caught


@pytest.mark.parametrize(
    ("file", "override"),
    [
        ("val/a/0.jpg", ""),  # the first rank has the first half of the validation images
        ("val/b/9.jpg", ""),
        ("train/a/7.jpg", "data.on_bad_image=raise"),
    ],
)
def test_a_bad_file_ends_both_and_is_named(tmp_path, file, override):
    recipe, folder = write_recipe(tmp_path), tmp_path / "run"
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:700] + bytes(200))  # a header, and no image behind it
    both = _run(recipe, folder, 0, None, *filter(None, [override]))
    assert [end(process, LIMIT_S + 30) for process in both] == [2, 2]
    said = _said(folder)
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert re.search(rf"rank \d: .*{file} cannot be decoded; repair or remove the file", line)
    if file.startswith("val"):
        assert f"rank {int('b/' in file)}:" in line
    assert "Traceback" not in said


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=False)


def test_a_full_disk_ends_both_after_a_few_tries(recipe, tmp_path, full_disk):
    # The outputs of the processes lie beside the run folder, so on the full disk: a link.
    folder = tmp_path / "run"
    folder.symlink_to(full_disk)
    both = _run(recipe, folder, 0, None, "run.max_checkpoint_failures=2")
    assert [end(process, LIMIT_S + 30) for process in both] == [2, 2]
    said = _said(folder)
    assert "failure 1 of run.max_checkpoint_failures=2" in said
    assert (
        len(re.findall(r"^error: .*\d checkpoints in a row could not be written", said, re.M)) == 1
    )
    assert "Traceback" not in said
    assert not [*full_disk.glob("*.pt"), *full_disk.glob(".*.partial")]
