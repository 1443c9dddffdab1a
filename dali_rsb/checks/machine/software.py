"""Packages beside torch and DALI: torchvision, Triton, timm, and which apex it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from dali_rsb.checks.machine.finding import PIP_TESTED_STACK, Finding, note, ok, problem

DALI_DISTRIBUTIONS = ("nvidia-dali-cuda110", "nvidia-dali-cuda120", "nvidia-dali-cuda130")


def installed_dali() -> list[str]:
    """Installed DALI distributions, each as `name==version`."""
    found = []
    for name in DALI_DISTRIBUTIONS:
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def check_package(name: str, answer: dict[str, Any]) -> Finding:
    """A package that some parts want.

    Args:
        name: "torchvision", "triton" or "timm".
        answer: what `probe.packages` says of it.
    """
    without = {
        "torchvision": "training does without it",
        "triton": "torch.compile and the Triton kernels need it; it comes with torch",
        "timm": "model.name=timm:NAME does not work without it; training does",
    }[name]
    mend = "pip install timm" if name == "timm" else PIP_TESTED_STACK
    if answer.get("missing"):
        return note(name, f"not installed: {without}", mend)
    if "version" not in answer:
        return problem(name, f"cannot be imported: {answer.get('error', 'unknown')}", mend)
    return ok(name, str(answer["version"]))


def check_apex(
    find_spec: Callable[[str], Any] = importlib.util.find_spec,
) -> Finding:
    """NVIDIA's apex, the unrelated package of that name, or none, which is fine."""
    spec = find_spec("apex")
    if spec is None:
        return ok("apex", "not installed, not needed: LAMB and EMA are fused here")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    if not any((folder / "optimizers").is_dir() for folder in folders):
        return problem(
            "apex",
            "the package named apex is not NVIDIA's, but an unrelated one from the package index",
            "pip uninstall -y apex",
        )
    if find_spec("amp_C") is None:
        return note(
            "apex", "NVIDIA's, without its CUDA extensions: optimizer.backend=apex does not work"
        )
    return ok("apex", "NVIDIA's, with CUDA extensions: optimizer.backend=apex can be compared")
