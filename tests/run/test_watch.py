"""Processes end together: whatever happens to one of two, the other ends and says why."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import rank_worker
from conftest import ROOT, SERVER
from torch.distributed import HashStore

from dali_rsb.errors import UserError
from dali_rsb.run import watch
from dali_rsb.run.processes import _end_with_launcher
from dali_rsb.run.watch import BEAT_S, Watch

WORKER = Path(__file__).with_name("rank_worker.py")


def _pair(folder, fault, timeout_s=300.0):
    """Two processes without a launcher, which would end the other by itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pair = []
    for rank in range(2):
        arguments = (rank, port, folder / f"{rank}.txt", fault, timeout_s)
        pair.append(SERVER.Process(target=rank_worker.as_rank, args=arguments))
        pair[-1].start()
    return pair


def _output(folder, pair):
    """What the processes said, and their exit codes."""
    for process in pair:
        process.join(120)
    said = "".join((folder / f"{rank}.txt").read_text() for rank in range(2))
    return said, [process.exitcode for process in pair]


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("mistake", 2, "error: rank 1: val/cat/3.jpg cannot be decoded; delete it"),
        ("error", 1, "rank 1: ZeroDivisionError: a bug"),
        ("disk", 1, "rank 1: OSError: [Errno 28] No space left on device: 'last.pt'"),
        ("memory", 1, "rank 1: MemoryError: 12 GiB"),
        ("scan mistake", 2, "error: rank 0: train is empty"),
    ],
)
def test_an_error_on_one_rank_is_printed_once_and_ends_both(tmp_path, fault, code, line):
    said, codes = _output(tmp_path, _pair(tmp_path, fault))
    assert codes == [code, code], said
    assert said.splitlines().count(line) == 1, said
    assert "Connection" not in said


def test_a_killed_rank_is_named(tmp_path):
    said, codes = _output(tmp_path, _pair(tmp_path, "kill"))
    assert codes == [1, -signal.SIGKILL], said
    assert re.search("^rank 1: died without a word .* at update 5; then rank 0 met", said, re.M)


@pytest.mark.parametrize("fault", ["stop", "hang"])
def test_a_silent_rank_is_named_and_stacks_are_dumped(tmp_path, fault):
    pair = _pair(tmp_path, fault, timeout_s=4)
    if fault == "stop":
        pair[0].join(120)
        pair[1].kill()
    said, codes = _output(tmp_path, pair)
    assert codes == [1, -signal.SIGKILL if fault == "stop" else 1], said
    what = "does not answer" if fault == "stop" else "does not come on"
    line = rf"^rank 1: {what} for 4 s \(run.timeout\), last at update 5$"
    assert len(re.findall(line, said, re.M)) == 1, said
    assert "in all_reduce" in said  # where rank 0 stands
    assert fault == "stop" or "in _strike" in said  # where rank 1 stands


def test_a_scan_may_take_longer_than_the_time_out(tmp_path):
    said, codes = _output(tmp_path, _pair(tmp_path, "scan", timeout_s=2))
    assert codes == [0, 0], said


def test_others_wait_until_rank_0_announces():
    store = HashStore()
    first, other = (Watch(store, store, rank, 2, 300.0) for rank in range(2))
    waiting = threading.Thread(target=other.wait_for, args=("scan",), daemon=True)
    waiting.start()
    waiting.join(BEAT_S / 2)
    assert waiting.is_alive()
    first.announce("another scan")
    waiting.join(BEAT_S / 2)
    assert waiting.is_alive()
    first.announce("scan")
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_rank_that_cannot_say_what_it_is_at_goes_on(tmp_path):
    said, codes = _output(tmp_path, _pair(tmp_path, "wordless", timeout_s=2))
    assert codes == [0, 0], said


def test_the_time_out_runs_from_a_ranks_first_beat(monkeypatch):
    store, now_s = HashStore(), time.monotonic()
    first, second = (Watch(store, store, rank, 2, timeout_s=5) for rank in range(2))
    silent = []
    monkeypatch.setattr(second, "_end_silent", lambda ranks, heard: silent.append(ranks))
    first._beat(0)
    for later_s, expected in ((4, []), (8, []), (10, [[0]])):
        clock = SimpleNamespace(monotonic=lambda at_s=now_s + later_s: at_s)
        monkeypatch.setattr(watch, "time", clock)
        second._listen()
        assert silent == expected


def test_why_a_run_ends_is_said_on_stderr_alone(monkeypatch, capsys):
    monkeypatch.setattr(watch, "_exit", sys.exit)
    monkeypatch.setattr(watch, "BEAT_S", 0.0)
    store = HashStore()
    with pytest.raises(SystemExit) as ended:
        Watch(store, store, 0, 2, timeout_s=5).fail(UserError("train is empty; give images"))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == "error: rank 0: train is empty; give images\n"
    assert printed.out == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_the_kernel_is_asked_to_end_a_rank_with_its_launcher(monkeypatch):
    """One that hangs, or has no watch yet, ends too."""
    set_signal, get_signal = 1, 2  # PR_SET_PDEATHSIG and PR_GET_PDEATHSIG of <sys/prctl.h>
    prctl, before, asked = ctypes.CDLL(None).prctl, ctypes.c_int(), ctypes.c_int()
    prctl(get_signal, ctypes.byref(before), 0, 0, 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    try:
        _end_with_launcher()
        prctl(get_signal, ctypes.byref(asked), 0, 0, 0)
    finally:
        prctl(set_signal, before, 0, 0, 0)
    assert asked.value == signal.SIGTERM


def test_killing_the_launcher_leaves_no_orphans(tmp_path):
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
            *("--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", WORKER, "none", "300"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    files = [tmp_path / f"pid-{rank}" for rank in range(2)]
    _wait(lambda: all(file.exists() and file.read_text() for file in files))
    time.sleep(3)
    launcher.kill()
    launcher.wait()
    workers = [int(file.read_text()) for file in files]
    _wait(lambda: not any(map(_runs, workers)), limit_s=30)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(is_so, limit_s=120.0):
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
