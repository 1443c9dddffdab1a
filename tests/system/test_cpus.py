"""CPU counting under affinity masks and container quotas, with made-up cgroup files."""

import os
import platform

import pytest

from dali_rsb.system import cpus
from dali_rsb.system.cpus import available_cpus, cpu_model, threads_per_process


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Count the CPUs of a machine with 8 of them in the affinity mask and these cgroup files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))

    def count(groups, files):
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        (tmp_path / "groups").write_text("".join(f"{group}\n" for group in groups))
        return available_cpus(tmp_path / "mount", tmp_path / "groups")

    return count


V1 = ["11:memory:/docker/abc", "4:cpu,cpuacct:/docker/abc", "1:name=systemd:/docker/abc"]


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param(["0::/"], {}, 8, id="v2 without the file"),
        pytest.param(["0::/"], {"cpu.max": "max 100000"}, 8, id="v2 without quota"),
        pytest.param(["0::/"], {"cpu.max": "400000 100000"}, 4, id="v2"),
        pytest.param(["0::/"], {"cpu.max": "370000 100000"}, 3, id="v2 rounded down"),
        pytest.param(["0::/"], {"cpu.max": "50000 100000"}, 1, id="v2 below one"),
        pytest.param(["0::/"], {"cpu.max": "1600000 100000"}, 8, id="v2 above the affinity"),
        pytest.param(
            ["0::/pod/box"],
            {"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "500000 100000"},
            2,
            id="v2 quota of the group around",
        ),
        pytest.param(["0::/pod/box"], {"cpu.max": "300000 100000"}, 3, id="v2 path of the host"),
        pytest.param(["0::/../../box"], {"cpu.max": "300000 100000"}, 3, id="v2 path outside"),
        pytest.param(["0::/pod/box"], {"other/cpu.max": "100000 100000"}, 8, id="v2 of others"),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "50000"},
            5,
            id="v1 in a container",
        ),
        pytest.param(
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "600000",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            6,
            id="v1 on the host",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            8,
            id="v1 without quota",
        ),
    ],
)
def test_available_cpus(machine, groups, files, expected):
    assert machine(groups, files) == expected


def test_without_cgroups_the_affinity_counts(tmp_path):
    count = available_cpus(tmp_path / "none", tmp_path / "none either")
    assert count == len(os.sched_getaffinity(0))


def test_on_this_machine():
    assert 1 <= available_cpus() <= os.cpu_count()


@pytest.mark.parametrize(("processes", "expected"), [(1, 13), (2, 6), (4, 3), (13, 1), (16, 1)])
def test_threads_per_process(monkeypatch, processes, expected):
    monkeypatch.setattr(cpus, "available_cpus", lambda: 13)
    assert threads_per_process(processes) == expected


def test_threads_per_process_refuses_zero():
    with pytest.raises(ValueError, match="local_world_size"):
        threads_per_process(0)


def test_cpu_model(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast CPU: 3 GHz\n\nmodel name\t: other\n")
    assert cpu_model(info) == "Fast CPU: 3 GHz"
    info.write_text("processor\t: 0\n")
    assert cpu_model(info) == cpu_model(tmp_path / "none") == platform.machine()
    assert cpu_model()
