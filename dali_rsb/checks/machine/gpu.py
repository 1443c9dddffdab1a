"""The driver, the GPUs, and whether PyTorch and DALI were built for them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dali_rsb.checks.machine.finding import PIP_TESTED_STACK, Finding, note, ok, problem
from dali_rsb.constants import NVIDIA_DRIVER

PCI_DEVICES = Path("/sys/bus/pci/devices")
PROC_DRIVER = Path(NVIDIA_DRIVER)

# Oldest Linux driver for a CUDA major (CUDA release notes, minor version compatibility).
MIN_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
# 580 is the last branch that drives V100, and the first for CUDA 13.
INSTALL_DRIVER = "sudo apt-get install nvidia-driver-580  # then reboot"
# nvidia-dali-cuda120 holds code from sm_50 on, -cuda130 from sm_75 on (DALI support matrix).
DALI_MIN_CAPABILITY = {"cuda110": (5, 0), "cuda120": (5, 0), "cuda130": (7, 5)}
# Data-centre GPUs with JPEG engines: A100 and A30, H100 and H200, B200 and its kin.
JPEG_ENGINE_CAPABILITIES = {(8, 0), (9, 0), (10, 0), (10, 3)}


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name and compute capability, such as (7, 0)."""

    name: str
    capability: tuple[int, int]


def query_gpus() -> tuple[list[Gpu], str | None]:
    """GPUs and driver version as nvidia-smi reports them; an empty list where it cannot be run."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version"]
    try:
        result = subprocess.run(
            [*command, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return [], None
    return parse_gpus(result.stdout)


def parse_gpus(csv: str) -> tuple[list[Gpu], str | None]:
    """GPUs and driver version from nvidia-smi's lines `name, capability, driver`."""
    gpus, driver = [], None
    for line in csv.strip().splitlines():
        fields = [field.strip() for field in line.rsplit(",", 2)]
        capability = re.fullmatch(r"(\d+)\.(\d+)", fields[1]) if len(fields) == 3 else None
        if capability:
            gpus.append(Gpu(fields[0], (int(capability[1]), int(capability[2]))))
            driver = fields[2]
    return gpus, driver


def loaded_driver(proc_driver: Path = PROC_DRIVER) -> str | None:
    """Version of the kernel module that is loaded; containers see it without nvidia-smi."""
    try:
        text = proc_driver.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return found[1] if found else None


def count_pci_gpus(pci_devices: Path = PCI_DEVICES) -> int:
    """NVIDIA display controllers on the PCI bus, driver or not."""
    count = 0
    for device in pci_devices.glob("*"):
        try:
            vendor = (device / "vendor").read_text(encoding="utf-8").strip()
            device_class = (device / "class").read_text(encoding="utf-8").strip()
        except OSError:
            continue
        count += vendor == "0x10de" and device_class.startswith("0x03")
    return count


def check_driver(
    gpus: Sequence[Gpu], driver: str | None, num_pci_gpus: int, in_container: bool
) -> Finding:
    """Is there a driver, and does it show the GPUs?

    Args:
        driver: version of nvidia-smi, else of the kernel module, else None.
    """
    if gpus:
        names = ", ".join(f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]})" for gpu in gpus)
        return ok("driver", f"{driver}, {len(gpus)} GPU(s): {names}")
    if driver or num_pci_gpus:
        found = f"driver {driver} is loaded" if driver else f"{num_pci_gpus} GPU(s) on the PCI bus"
        if in_container:
            return problem(
                "driver",
                f"{found}, but this container sees no GPU",
                "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility,video IMAGE",
            )
        if driver:
            return problem(
                "driver", f"{found}, but nvidia-smi shows no GPU", "sudo nvidia-smi  # says why"
            )
        return problem("driver", f"{found}, but no NVIDIA driver", INSTALL_DRIVER)
    return note("driver", "no NVIDIA GPU here: training runs on the CPU", "run.device=cpu")


def check_torch_build(torch: dict[str, Any], gpus: Sequence[Gpu]) -> Finding:
    """Does PyTorch hold code for these GPUs?

    Args:
        torch: what `probe.packages` says of torch.
    """
    name = "torch build"
    if "version" not in torch:
        what = "is not installed" if torch.get("missing") else f"cannot be imported: {_why(torch)}"
        return problem(name, f"torch {what}", PIP_TESTED_STACK)
    built = f"torch {torch['version']}"
    if torch.get("cuda") is None:
        if not gpus:
            return note(
                name,
                f"{built} is built for CPUs alone: fine for run.device=cpu, but torchvision and "
                "Triton's compiled kernels may be missing",
            )
        return problem(name, f"{built} is built for CPUs alone", PIP_TESTED_STACK)
    archs = torch["arch_list"]
    for gpu in gpus:
        if archs and not has_code_for(gpu.capability, archs):
            tag = f"sm_{gpu.capability[0]}{gpu.capability[1]}"
            newer = gpu.capability > (12, 0)
            return problem(
                name,
                f"{built} (CUDA {torch['cuda']}) holds no code for {gpu.name}: {tag} is not in "
                f"{' '.join(archs)}",
                "pip install --upgrade torch torchvision nvidia-dali-cuda130"
                if newer
                else PIP_TESTED_STACK,
            )
    return ok(name, f"{built}, CUDA {torch['cuda']}, {' '.join(archs)}")


def has_code_for(capability: tuple[int, int], archs: Iterable[str]) -> bool:
    """Whether a build with these architectures (torch.cuda.get_arch_list) runs on a GPU.

    Machine code (sm_80) runs on the same major and a minor at least as high; PTX (compute_80) is
    compiled for any later one; an "a" or "f" at the end ties code to its own architecture.
    """
    for arch in archs:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if not found:
            continue
        built = (int(found[2]), int(found[3]))
        if built == capability:
            return True
        if found[4] or built > capability:
            continue
        if found[1] == "compute" or built[0] == capability[0]:
            return True
    return False


def check_driver_age(driver: str | None, cuda: dict[str, int], gpus: Sequence[Gpu]) -> Finding:
    """Is the driver new enough for the CUDA that packages were built with?

    Args:
        cuda: CUDA major by package, such as {"torch": 12}.
    """
    name = "driver age"
    if not gpus or driver is None:
        return ok(name, "no GPU, no requirement")
    version = tuple(int(part) for part in re.findall(r"\d+", driver))
    for package, major in cuda.items():
        needed = MIN_DRIVER.get(major)
        if needed and version < needed:
            text = ".".join(f"{part:02d}" for part in needed)
            fits_tested = version >= MIN_DRIVER[12]
            return problem(
                name,
                f"{package} is built for CUDA {major}, which needs driver {text} or newer, not "
                f"{driver}",
                PIP_TESTED_STACK if fits_tested else INSTALL_DRIVER,
            )
    return ok(name, f"{driver} is new enough for CUDA {', '.join(map(str, set(cuda.values())))}")


def cuda_majors(torch: dict[str, Any], distributions: Sequence[str]) -> dict[str, int]:
    """The CUDA major that each package was built with, such as {"torch": 12, "DALI": 12}."""
    majors = {}
    if torch.get("cuda"):
        majors["torch"] = int(torch["cuda"].partition(".")[0])
    for installed in distributions:
        found = re.search(r"-cuda(\d+)0==", installed)
        if found:
            majors["DALI"] = int(found[1])
    return majors


def check_dali_build(distributions: Sequence[str], gpus: Sequence[Gpu]) -> Finding:
    """Is exactly one DALI installed, and is it built for these GPUs?

    Args:
        distributions: installed ones among nvidia-dali-cuda*, each as `name==version`.
    """
    name = "DALI build"
    if not distributions:
        return problem(name, "DALI is not installed", PIP_TESTED_STACK)
    if len(distributions) > 1:
        names = " ".join(one.partition("==")[0] for one in distributions)
        return problem(
            name,
            f"{' and '.join(distributions)} overwrite each other's files",
            f"pip uninstall -y {names} && {PIP_TESTED_STACK}",
        )
    (installed,) = distributions
    flavour = installed.partition("==")[0].rpartition("-")[2]
    least = DALI_MIN_CAPABILITY.get(flavour, (0, 0))
    for gpu in gpus:
        if gpu.capability < least:
            return problem(
                name,
                f"{installed} holds no code for {gpu.name} (sm_{least[0]}{least[1]} and newer)",
                f"pip uninstall -y {installed.partition('==')[0]} && {PIP_TESTED_STACK}",
            )
    return ok(name, installed)


def check_dali_runs(device: str, answer: dict[str, Any]) -> Finding:
    """Does a small pipeline decode?

    Args:
        device: "CPU" or "GPU".
        answer: of `probe.dali_cpu` or `probe.dali_gpu`.
    """
    name = f"DALI on {device}"
    if "error" in answer:
        return problem(
            name,
            f"a small pipeline fails: {answer['error']}",
            f"pip install --force-reinstall {PIP_TESTED_STACK.removeprefix('pip install ')}",
        )
    return ok(name, "a small pipeline decodes a JPEG")


def check_torch_sees_gpus(torch: dict[str, Any], gpus: Sequence[Gpu]) -> Finding:
    """Does PyTorch see as many GPUs as the driver?"""
    name, seen = "torch GPUs", len(torch.get("gpus", ()))
    if seen or not gpus:
        return ok(name, f"torch sees {seen} of {len(gpus)} GPU(s)")
    return problem(
        name,
        f"torch sees none of {len(gpus)} GPU(s), though the driver shows them",
        "unset CUDA_VISIBLE_DEVICES; python -c 'import torch; torch.zeros(1).cuda()'  # says why",
    )


def check_jpeg_engine(gpus: Sequence[Gpu], answer: dict[str, Any]) -> Finding:
    """Are the JPEG engines visible where the GPU has some?

    Args:
        answer: of `probe.jpeg_engine`.
    """
    name = "JPEG engine"
    if not gpus:
        return ok(name, "no GPU, none expected")
    gpu = gpus[0]
    if answer.get("engines"):
        return ok(name, f"{gpu.name}: {answer['engines']} engine(s), data.hw_decoder_load has them")
    if gpu.capability not in JPEG_ENGINE_CAPABILITIES:
        return ok(name, f"{gpu.name} has none that nvJPEG uses: its cores and the CPU decode")
    if "error" in answer or answer.get("engines") is None:
        why = answer.get("error", "nvJPEG's library is not installed")
        return note(name, f"cannot be asked: {why}")
    lacks = "" if answer.get("has_library") else ", and libnvcuvid.so.1 is missing"
    return problem(
        name,
        f"{gpu.name} has JPEG engines, but nvJPEG sees none{lacks}: the container lacks the "
        "`video` capability (or this is a MIG slice without an engine)",
        "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility,video IMAGE",
    )


def _why(answer: dict[str, Any]) -> str:
    return str(answer.get("error", "unknown"))
