"""Parts of the checks that a whole run of them does not tell apart."""

import sys
from types import SimpleNamespace

import pytest

from dali_rsb.checks.dataset.report import _groups
from dali_rsb.checks.machine import host, probe


def test_one_gpu_needs_no_shared_memory(tmp_path):
    found = host.check_shared_memory(1, tmp_path / "none")
    assert (found.check, found.level) == ("/dev/shm", "ok")
    assert "not used" in found.message
    found = host.check_shared_memory(2, tmp_path / "none")
    assert (found.check, found.level) == ("/dev/shm", "problem")
    assert found.message.startswith("0.0 MiB free")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (r"printf '\377 broke\n' >&2; exit 3", "\ufffd broke"),
        ("exit 4", "the process ended with code 4"),
    ],
)
def test_what_a_probe_says_need_not_be_text(tmp_path, monkeypatch, script, error):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    assert probe.ask("packages") == {"error": error}


def test_long_lists_of_copies_are_cut_after_ten():
    index = SimpleNamespace(name="{}.jpg".format, labels=[0] * 99, classes=["cat"])
    scans = [SimpleNamespace(index=index)]
    groups = [[SimpleNamespace(dataset=0, row=row) for row in range(12)]] * 13
    first, *shown, last = _groups(scans, groups, "images twice")
    assert first == "problem: 13 images twice"
    assert len(shown) == 10
    assert shown[0] == "  " + " = ".join(f"{row}.jpg (cat)" for row in range(10))
    assert last == "  and 3 more"
    assert len(_groups(scans, groups[:10], "images twice")) == 11
