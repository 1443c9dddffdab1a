"""The doctor: each check with made-up machines, the probes on this one, and the command."""

import importlib.machinery
import json
import os
import re
import resource
import subprocess
import sys

import pytest
from conftest import ROOT, run_module

from dali_rsb import doctor
from dali_rsb.checks.machine import finding, gpu, jpeg_engine, probe, software, storage
from dali_rsb.checks.machine import host as machine
from dali_rsb.checks.machine.finding import PIP_TESTED_STACK, Finding
from dali_rsb.checks.machine.gpu import Gpu
from dali_rsb.checks.machine.host import Memory
from dali_rsb.checks.machine.storage import Reads
from dali_rsb.errors import UserError

V100 = Gpu("Tesla V100-SXM2-16GB", (7, 0))
T4 = Gpu("Tesla T4", (7, 5))
A100 = Gpu("NVIDIA A100-SXM4-80GB", (8, 0))
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0))
B300 = Gpu("NVIDIA B300", (10, 3))
SPARK = Gpu("NVIDIA GB10", (12, 1))
TORCH_2_10 = {
    "version": "2.10.0+cu128",
    "cuda": "12.8",
    "arch_list": ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    "gpus": [],
}
TORCH_2_12 = {
    "version": "2.12.1+cu130",
    "cuda": "13.0",
    "arch_list": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    "gpus": [],
}
GIB = 2**30


def test_the_tested_stack_is_that_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert set(finding.TESTED_STACK.split()) <= set(lines)


@pytest.mark.parametrize(
    ("csv", "gpus", "driver"),
    [
        ("", [], None),
        ("Tesla V100-SXM2-16GB, 7.0, 535.104.05\n", [V100], "535.104.05"),
        (
            "NVIDIA H100 80GB HBM3, 9.0, 570.86.15\nNVIDIA H100 80GB HBM3, 9.0, 570.86.15\n",
            [H100, H100],
            "570.86.15",
        ),
        ("No devices were found\n", [], None),
        ("Odd, name, 8.0, 570.1\n", [Gpu("Odd, name", (8, 0))], "570.1"),
        ("Old card, [N/A], 390.1\n", [], None),
    ],
)
def test_parsing_nvidia_smi(csv, gpus, driver):
    assert gpu.parse_gpus(csv) == (gpus, driver)


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build",
    ],
)
def test_the_version_of_the_loaded_driver(tmp_path, text):
    path = tmp_path / "version"
    assert gpu.loaded_driver(path) is None
    path.write_text(text + "\nGCC version: 12.3.0\n")
    assert gpu.loaded_driver(path) == "535.104.05"


def test_gpus_on_the_pci_bus(tmp_path):
    for name, vendor, kind in (
        ("gpu", "0x10de", "0x030200"),
        ("its audio", "0x10de", "0x040300"),
        ("other", "0x1234", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    (tmp_path / "odd").mkdir()
    assert gpu.count_pci_gpus(tmp_path) == 1
    assert gpu.count_pci_gpus(tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("gpus", "driver", "num_pci", "in_container", "level", "fix"),
    [
        ([V100], "535.1", 1, False, "ok", None),
        ([], None, 0, False, "note", "run.device=cpu"),
        ([], None, 2, False, "problem", "apt-get install nvidia-driver"),
        ([], None, 2, True, "problem", "--gpus all"),
        ([], "535.1", 2, True, "problem", "--gpus all"),
        ([], "535.1", 2, False, "problem", "nvidia-smi"),
    ],
)
def test_driver(gpus, driver, num_pci, in_container, level, fix):
    found = gpu.check_driver(gpus, driver, num_pci, in_container)
    assert found.level == level
    assert found.fix is None if fix is None else fix in found.fix


@pytest.mark.parametrize(
    ("capability", "archs", "expected"),
    [
        ((7, 0), ["sm_70"], True),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((8, 9), ["sm_75", "compute_80"], True),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100"], True),
        ((10, 3), ["sm_100a"], False),
        ((12, 1), ["sm_120"], True),
        ((12, 0), ["compute_90a"], False),
        ((7, 0), ["odd", ""], False),
    ],
)
def test_which_code_runs_on_which_gpu(capability, archs, expected):
    assert gpu.has_code_for(capability, archs) == expected


@pytest.mark.parametrize(
    ("torch", "gpus", "level", "fix"),
    [
        (TORCH_2_10, [V100, H100], "ok", None),
        (TORCH_2_10, [], "ok", None),
        (TORCH_2_10, [B300, SPARK], "ok", None),
        (TORCH_2_12, [T4], "ok", None),
        (TORCH_2_12, [T4, V100], "problem", PIP_TESTED_STACK),
        (TORCH_2_10, [Gpu("of the future", (13, 0))], "problem", "pip install --upgrade torch"),
        ({"version": "2.10.0+cpu", "cuda": None}, [], "note", None),
        ({"version": "2.10.0+cpu", "cuda": None}, [V100], "problem", PIP_TESTED_STACK),
        ({"missing": True}, [], "problem", PIP_TESTED_STACK),
        ({"error": "OSError: libcudart.so.12"}, [], "problem", PIP_TESTED_STACK),
    ],
)
def test_torch_build(torch, gpus, level, fix):
    found = gpu.check_torch_build(torch, gpus)
    assert found.level == level
    assert found.fix is None if fix is None else fix in found.fix


def test_v100_and_a_cuda_13_wheel_is_told_as_such():
    found = gpu.check_torch_build(TORCH_2_12, [V100])
    assert "Tesla V100" in found.message
    assert "sm_70" in found.message
    assert found.fix == PIP_TESTED_STACK


@pytest.mark.parametrize(
    ("driver", "cuda", "gpus", "fix"),
    [
        ("535.104.05", {"torch": 12, "DALI": 12}, [V100], None),
        ("525.60.13", {"torch": 12}, [V100], None),
        ("525.60.11", {"torch": 12}, [V100], gpu.INSTALL_DRIVER),
        ("570.86.15", {"torch": 13, "DALI": 12}, [H100], PIP_TESTED_STACK),
        ("570.86.15", {"torch": 12, "DALI": 13}, [H100], PIP_TESTED_STACK),
        ("580.65.06", {"torch": 13, "DALI": 13}, [H100], None),
        ("470.1", {"torch": 13}, [V100], gpu.INSTALL_DRIVER),
        ("470.1", {"torch": 13}, [], None),
        (None, {"torch": 13}, [V100], None),
        ("999.1", {"torch": 99}, [H100], None),
    ],
)
def test_driver_age(driver, cuda, gpus, fix):
    found = gpu.check_driver_age(driver, cuda, gpus)
    assert found.level == ("ok" if fix is None else "problem")
    assert found.fix == fix


def test_cuda_of_the_packages():
    assert gpu.cuda_majors(TORCH_2_12, ["nvidia-dali-cuda120==2.4.0"]) == {"torch": 13, "DALI": 12}
    assert gpu.cuda_majors({"missing": True}, []) == {}


@pytest.mark.parametrize(
    ("distributions", "gpus", "level", "fix"),
    [
        (["nvidia-dali-cuda120==2.4.0"], [V100], "ok", None),
        (["nvidia-dali-cuda130==2.4.0"], [T4, H100], "ok", None),
        (["nvidia-dali-cuda130==2.4.0"], [V100], "problem", "pip uninstall -y nvidia-dali-cuda130"),
        (
            ["nvidia-dali-cuda120==2.4.0", "nvidia-dali-cuda130==2.4.0"],
            [],
            "problem",
            "pip uninstall -y nvidia-dali-cuda120 nvidia-dali-cuda130 && pip install",
        ),
        ([], [], "problem", PIP_TESTED_STACK),
    ],
)
def test_dali_build(distributions, gpus, level, fix):
    found = gpu.check_dali_build(distributions, gpus)
    assert found.level == level
    assert found.fix is None if fix is None else fix in found.fix


@pytest.mark.parametrize(
    ("gpus", "answer", "level", "words"),
    [
        ([], {}, "ok", "no GPU"),
        ([H100], {"engines": 7, "has_library": True}, "ok", "7 engine"),
        ([V100], {"engines": 0, "has_library": True}, "ok", "has none"),
        ([V100], {"error": "crash"}, "ok", "has none"),
        ([H100], {"engines": 0, "has_library": False}, "problem", "libnvcuvid"),
        ([A100], {"engines": 0, "has_library": True}, "problem", "`video`"),
        ([H100], {"engines": None, "has_library": True}, "note", "not installed"),
        ([H100], {"error": "crash"}, "note", "crash"),
    ],
)
def test_jpeg_engine(gpus, answer, level, words):
    found = gpu.check_jpeg_engine(gpus, answer)
    assert found.level == level
    assert words in found.message
    if level == "problem":
        assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in found.fix


def test_torch_that_sees_no_gpu():
    assert gpu.check_torch_sees_gpus(TORCH_2_10, []).level == "ok"
    assert gpu.check_torch_sees_gpus(TORCH_2_10, [V100]).level == "problem"
    assert gpu.check_torch_sees_gpus({"gpus": [["V100", 7, 0]]}, [V100]).level == "ok"


class _Nvjpeg:
    """nvJPEG with some engines, or without the hardware backend."""

    def __init__(self, engines):
        self._engines = engines
        self.open = 0

    def nvjpegCreateEx(self, backend, device, pinned, flags, handle):  # noqa: N802
        assert backend == 3
        self.open += self._engines is not None
        return 7 if self._engines is None else 0

    def nvjpegGetHardwareDecoderInfo(self, handle, engines, cores):  # noqa: N802
        engines._obj.value = self._engines
        return 0

    def nvjpegDestroy(self, handle):  # noqa: N802
        self.open -= 1


@pytest.mark.parametrize(("engines", "expected"), [(7, 7), (0, 0), (None, 0)])
def test_counting_jpeg_engines(monkeypatch, engines, expected):
    library = _Nvjpeg(engines)
    monkeypatch.setattr(jpeg_engine, "_load_nvjpeg", lambda: library)
    assert jpeg_engine.count_jpeg_engines() == expected
    assert library.open == 0


def test_without_nvjpeg_engines_are_unknown(monkeypatch):
    monkeypatch.setattr(jpeg_engine, "_load_nvjpeg", lambda: None)
    assert jpeg_engine.count_jpeg_engines() is None


@pytest.mark.parametrize(
    ("available", "affinity", "cores", "num_gpus", "level", "fix"),
    [
        (16, 16, 16, 1, "ok", None),
        (2, 2, 2, 0, "ok", None),
        (6, 64, 64, 1, "note", "OMP_NUM_THREADS=6"),
        (6, 64, 64, 4, "problem", "--cpus=16"),
        (3, 3, 3, 1, "problem", "--cpus=4"),
    ],
)
def test_cpus(available, affinity, cores, num_gpus, level, fix):
    found = machine.check_cpus(available, affinity, cores, num_gpus)
    assert found.level == level
    assert found.fix is None if fix is None else fix in found.fix


@pytest.mark.parametrize(
    ("soft", "hard", "level", "fix"),
    [
        (65536, 65536, "ok", None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok", None),
        (1024, 524288, "note", "ulimit -n 4096"),
        (1024, resource.RLIM_INFINITY, "note", "ulimit -n 4096"),
        (256, 2048, "problem", "ulimit -n 2048"),
    ],
)
def test_open_files(soft, hard, level, fix):
    found = machine.check_open_files(soft, hard)
    assert (found.level, found.fix) == (level, fix)


def test_shared_memory_matters_between_gpus_alone(tmp_path):
    assert machine.check_shared_memory(1, tmp_path / "none").level == "ok"
    assert machine.check_shared_memory(2, tmp_path / "none").level == "problem"
    assert machine.check_shared_memory(2, tmp_path).level == "ok"


def test_memory_of_a_machine_and_of_a_container(tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n")
    limit = tmp_path / "limit"
    assert machine.read_memory(info, [limit]) == Memory(8 * GIB, 4 * GIB)
    limit.write_text("max\n")
    assert machine.read_memory(info, [limit]) == Memory(8 * GIB, 4 * GIB)
    limit.write_text(f"{2 * GIB}\n")
    assert machine.read_memory(info, [limit]) == Memory(2 * GIB, 2 * GIB)
    assert 0 < machine.read_memory().available <= machine.read_memory().total


@pytest.mark.parametrize(
    ("dataset", "level", "words"),
    [
        (None, "ok", "8.0 GiB of 16.0 GiB"),
        (4 * GIB, "ok", "page cache"),
        (int(7.9 * GIB), "note", "at most"),
        (147 * 10**9, "note", "at most 6 %"),
    ],
)
def test_memory_and_the_dataset(dataset, level, words):
    found = machine.check_memory(Memory(16 * GIB, 8 * GIB), dataset)
    assert found.level == level
    assert words in found.message


def _spec(*folders):
    spec = importlib.machinery.ModuleSpec("apex", None, is_package=True)
    spec.submodule_search_locations = [str(folder) for folder in folders]
    return spec


def test_apex(tmp_path):
    nvidias, other = tmp_path / "nvidias", tmp_path / "other"
    (nvidias / "optimizers").mkdir(parents=True)
    other.mkdir()
    specs = {}
    assert software.check_apex(specs.get).level == "ok"
    specs["apex"] = _spec(other)
    impostor = software.check_apex(specs.get)
    assert (impostor.level, impostor.fix) == ("problem", "pip uninstall -y apex")
    specs["apex"] = _spec(nvidias)
    assert software.check_apex(specs.get).level == "note"
    specs["amp_C"] = _spec()
    assert software.check_apex(specs.get).level == "ok"


@pytest.mark.parametrize("name", ["torchvision", "triton", "timm"])
def test_packages(name):
    assert software.check_package(name, {"version": "1.0"}).level == "ok"
    assert software.check_package(name, {"missing": True}).level == "note"
    broken = software.check_package(name, {"error": "ImportError: no symbol"})
    assert broken.level == "problem"
    assert "no symbol" in broken.message
    assert broken.fix.startswith("pip install")


def test_installed_dali_is_one_distribution():
    (installed,) = software.installed_dali()
    assert re.fullmatch(r"nvidia-dali-cuda\d+==[\d.]+", installed)


def _write_files(root, folders=3, files=10, size=5000):
    for i in range(folders):
        (root / f"class{i}").mkdir(parents=True)
        for j in range(files):
            (root / f"class{i}" / f"{j}.jpg").write_bytes(os.urandom(size))
    (root / ".hidden").write_bytes(b"")
    return root


def test_files_are_sampled_from_everywhere(tmp_path, monkeypatch):
    root = _write_files(tmp_path / "images")
    sample = storage.sample_files(root)
    assert (sample.num_files, sample.mean_bytes, sample.counted_all) == (30, 5000, True)
    assert sample.total_bytes == 150_000
    assert len(set(sample.files)) == 30
    monkeypatch.setattr(storage, "NUM_SAMPLES", 12)
    few = storage.sample_files(root)
    assert (few.num_files, len(set(few.files))) == (30, 12)
    assert len({path.parent for path in few.files}) == 3
    (tmp_path / "empty" / "class").mkdir(parents=True)
    (tmp_path / "empty" / "broken link").symlink_to(tmp_path / "nothing")
    assert storage.sample_files(tmp_path / "empty") is None


def test_counting_ends_when_it_takes_too_long(tmp_path):
    root = _write_files(tmp_path / "images")
    times = iter([0.0, 0.0, 1.0, 11.0])  # start, then before each folder
    sample = storage.sample_files(root, clock=lambda: next(times))
    assert (sample.num_files, sample.counted_all) == (10, False)


def test_reading_counts_what_was_read(tmp_path):
    files = storage.sample_files(_write_files(tmp_path / "images")).files
    reads = storage.read_cold(files, num_threads=2)
    assert (reads.num_images, reads.num_bytes) == (30, 150_000)
    assert reads.img_per_s > 0
    assert reads.mb_per_s > 0
    for share in (reads.cached_before, reads.cached_at_start):
        assert share is None or 0 <= share <= 1
    none = storage.read_cold(files, seconds=0)
    assert none.num_images == 0


def test_files_just_written_lie_in_the_page_cache(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_000))
    share = storage.cached_share([path])
    assert share is None or share > 0.5  # None: a kernel that does not tell
    empty = tmp_path / "empty"
    empty.touch()
    assert storage.cached_share([empty]) is None


def test_an_image_is_read_from_within_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "CONTAINER_BYTES", 1_000_000)
    path = tmp_path / "shard.tar"
    path.write_bytes(bytes(1_500_000))
    reads = storage.read_cold([path])
    assert (reads.num_images, reads.num_bytes) == (1, storage.IMAGE_BYTES)


@pytest.mark.parametrize(
    ("gpus", "cpus", "expected"),
    [
        ([], 2, 898),
        ([V100] * 4, 32, 2400),
        ([T4], 8, 600),
        ([A100, H100], 32, 10_500),
        ([B300], 8, 7000),
    ],
)
def test_the_rate_that_training_wants(gpus, cpus, expected):
    assert storage.needed_rate(gpus, cpus) == expected


@pytest.mark.parametrize(
    ("rate", "fits", "level", "fix"),
    [
        (3000, False, "ok", None),
        (300, True, "note", "find .* xargs"),
        (300, False, "problem", "dali_rsb.pack"),
    ],
)
def test_storage(tmp_path, rate, fits, level, fix):
    reads = Reads(rate, rate * 110_000, 1.0, 0.25, 0.0)
    found = storage.check_storage(tmp_path, reads, 1000, fits)
    assert found.level == level
    assert "25 % of the files" in found.message
    assert found.fix is None if fix is None else re.search(fix, found.fix)
    unknown = storage.check_storage(tmp_path, Reads(rate, 1, 1.0, None, None), 1000, fits)
    assert "does not tell" in unknown.message


def test_probes_answer_here():
    packages = probe.ask("packages")
    assert packages["torch"]["version"].startswith("2.")
    if packages["torch"]["cuda"]:
        assert packages["torch"]["arch_list"]
    assert probe.ask("dali_cpu")["shape"] == [1, 32, 32, 3]


def test_a_probe_that_fails_or_crashes_or_hangs_is_an_error(monkeypatch):
    assert "KeyError" in probe.ask("no such probe")["error"]

    def run(command, **options):
        return subprocess.CompletedProcess(command, -11, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert "SIGSEGV" in probe.ask("dali_cpu")["error"]

    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, 180)

    monkeypatch.setattr(subprocess, "run", hang)
    answer = probe.ask("dali_gpu")
    assert "180 s" in answer["error"]
    found = gpu.check_dali_runs("GPU", answer)
    assert found.level == "problem"
    assert "--force-reinstall" in found.fix


def _run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        doctor.main()
    return stopped.value.code


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_exit_codes_and_lines(monkeypatch, capsys, level, code):
    findings = [Finding("one", "ok", "fine"), Finding("two", level, "so so", "fix it")]
    monkeypatch.setattr(doctor, "diagnose", lambda data: iter(findings))
    assert _run_main(monkeypatch) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "OK      one: fine"
    assert lines[1].split()[0] == level.upper()
    assert lines[2] == "        -> fix it"


def test_a_long_finding_stands_in_lines_of_80_columns():
    fix = f"pip install {'x' * 90}"  # a command is not broken
    *lines, last = doctor.format_finding(Finding("one", "note", "word " * 40, fix)).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line[:8] for line in lines] == ["NOTE    ", *[" " * 8] * (len(lines) - 1)]
    assert last == f"        -> {fix}"


def test_data_that_is_no_folder_is_a_user_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["doctor", str(tmp_path / "none")])
    with pytest.raises(UserError, match="is not a folder"):
        doctor.main()
    with pytest.raises(UserError, match="holds no files"):
        list(doctor._data(tmp_path, []))

    def refuse(root):
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(storage, "sample_files", refuse)
    with pytest.raises(UserError, match=r"cannot read .*Permission denied"):
        list(doctor._data(tmp_path, []))


def test_the_command_on_this_machine(tmp_path):
    root = _write_files(tmp_path / "images")
    result = run_module("dali_rsb.doctor", root, "--json")
    assert result.returncode in (0, 1), result.stderr
    findings = json.loads(result.stdout)
    by_check = {found["check"]: found for found in findings}
    assert len(by_check) == len(findings)
    assert {"driver", "CPUs", "torch build", "DALI on CPU", "apex", "storage"} <= by_check.keys()
    assert by_check["DALI on CPU"]["level"] == "ok"
    has_problem = any(found["level"] == "problem" for found in findings)
    assert result.returncode == (1 if has_problem else 0)
    assert all(found["fix"] for found in findings if found["level"] == "problem")
