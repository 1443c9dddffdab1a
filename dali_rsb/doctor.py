"""The command `dali-rsb doctor [DATA]`: what on this machine keeps training from running
fast, or at all, and the command that fixes it.

Exit code: 0 without problems, 1 with problems, 2 for a mistake in the command line.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from dali_rsb.checks.machine import decoders, gpu, software, storage
from dali_rsb.checks.machine import host as machine
from dali_rsb.checks.machine.finding import Finding
from dali_rsb.checks.machine.probe import DECODE, ask
from dali_rsb.config.options import OptionsParser
from dali_rsb.errors import UserError, run_command
from dali_rsb.system.cpus import available_cpus

_MARKS = {"ok": "OK", "note": "NOTE", "problem": "PROBLEM"}
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def main() -> None:
    parser = OptionsParser("doctor", __doc__)
    parser.add_argument("data", nargs="?", type=Path, help="folder of images or shards")
    parser.add_argument("--json", action="store_true", help="print a list of findings as JSON")
    parser.add_argument(
        "--packs", action="store_true", help="also measure which pack of DATA would pay, for A3"
    )
    arguments = parser.parse_args()
    if arguments.packs and arguments.data is None:
        parser.error("--packs needs DATA")
    if arguments.data is not None and not arguments.data.is_dir():
        raise UserError(f"{arguments.data} is not a folder: give the folder of images or shards")
    findings = []
    checks = diagnose(arguments.data)
    if arguments.packs:
        checks = itertools.chain(checks, _packs(arguments.data))
    for finding in checks:
        findings.append(finding)
        if not arguments.json:
            print(format_finding(finding), flush=True)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    sys.exit(1 if any(finding.level == "problem" for finding in findings) else 0)


def format_finding(finding: Finding) -> str:
    """The finding in lines of 80 columns, and the fix below it."""
    line = textwrap.fill(
        f"{_MARKS[finding.level]:8}{finding.check}: {finding.message}",
        80,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return line if finding.fix is None else f"{line}\n{'':8}-> {finding.fix}"


def diagnose(data: Path | None) -> Iterator[Finding]:
    """Run all checks, the quick ones first.

    Raises:
        UserError: `data` holds no files, or cannot be read.
    """
    gpus, driver = gpu.query_gpus()
    driver = driver or gpu.loaded_driver()
    in_container = any(mark.exists() for mark in _CONTAINER_MARKS)
    in_container |= "KUBERNETES_SERVICE_HOST" in os.environ
    yield gpu.check_driver(gpus, driver, gpu.count_pci_gpus(), in_container)
    yield from _machine(len(gpus))
    yield from _software(gpus, driver)
    yield from _data(data, gpus)


def _machine(num_gpus: int) -> Iterator[Finding]:
    affinity, cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    yield machine.check_cpus(available_cpus(), affinity, cores, num_gpus)
    yield machine.check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield machine.check_shared_memory(num_gpus)


def _software(gpus: list[gpu.Gpu], driver: str | None) -> Iterator[Finding]:
    packages = ask("packages")
    torch = packages.get("torch", packages)  # an error instead, where the probe itself failed
    yield gpu.check_torch_build(torch, gpus)
    distributions = software.installed_dali()
    yield gpu.check_dali_build(distributions, gpus)
    yield gpu.check_driver_age(driver, gpu.cuda_majors(torch, distributions), gpus)
    yield gpu.check_torch_sees_gpus(torch, gpus)
    if distributions:
        yield gpu.check_dali_runs("CPU", ask("dali_cpu"))
        if gpus:
            yield gpu.check_dali_runs("GPU", ask("dali_gpu"))
        yield from _decoders(on_gpu=bool(gpus))
    yield gpu.check_jpeg_engine(gpus, ask("jpeg_engine") if gpus else {})
    for name in ("torchvision", "triton", "timm"):
        yield software.check_package(name, packages.get(name, packages))
    yield software.check_apex()


def _decoders(on_gpu: bool) -> Iterator[Finding]:
    """Every way to decode, each in a process of its own; without a GPU they are two."""
    for way in decoders.WAYS if on_gpu else ("host", "full"):
        answer = ask(f"{DECODE}{'gpu_' if on_gpu else ''}{way}")
        yield decoders.check_decoder(way, on_gpu, answer)


def _data(data: Path | None, gpus: list[gpu.Gpu]) -> Iterator[Finding]:
    memory = machine.read_memory()
    if data is None:
        yield machine.check_memory(memory, None)
        return
    try:
        sample = storage.sample_files(data)
        reads = None if sample is None else storage.read_cold(sample.files)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    if sample is None or reads is None:
        raise UserError(f"{data} holds no files: give the folder of images or shards")
    yield machine.check_memory(memory, sample.total_bytes)
    needed = storage.needed_rate(gpus, available_cpus())
    fits = sample.counted_all and machine.fits(memory, sample.total_bytes)
    yield storage.check_storage(data, reads, needed, fits)


def _packs(data: Path) -> Iterator[Finding]:
    """Measure which pack would pay; raises as `checks.machine.packs.advise`."""
    # Not above: a machine without DALI is diagnosed too.
    from dali_rsb.checks.machine.pack_advice import check_packs
    from dali_rsb.checks.machine.packs import advise
    from dali_rsb.dataset import open_index
    from dali_rsb.training.measuring import RecipeLoading

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    advice = advise(open_index(data), RecipeLoading.of_recipe("a3"), tell=tell)
    yield check_packs(data, advice)


if __name__ == "__main__":
    run_command(main)
