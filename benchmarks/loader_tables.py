"""Tables of docs/results.md about the loader alone: beside all others, its profile, more cores.

Each takes a result file and the line that says where it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GROUPS = {
    "same_pixels": "The pixels of timm's RandomResizedCrop and flip, of the original files",
    "anything_goes": "Anything goes: smaller images, raw pixels, other filters and decoders; "
    "RandomResizedCrop and flip",
}
_OURS = "dali_rsb"
_PLAIN = " plain"


def peers_lines(report: Mapping[str, Any], where: str) -> list[str]:
    """One table a group: images/s, CPU time, and each rate against that of ours."""
    settings, data = report["settings"], report["dataset"]
    lines = [
        f"Our loader beside all others: {data['images']:,} JPEG files, {settings['size_px']} px, "
        f"batch {settings['batch']}, {where} What was chosen for each, and why, is in "
        "benchmarks/README.md."
    ]
    for name, group in report["groups"].items():
        lines += ["", f"{_GROUPS[name]}:", "", *_group_lines(group)]
    return lines


def _group_lines(group: Mapping[str, Any]) -> list[str]:
    candidates = group["candidates"]
    fastest_first = sorted(candidates, key=lambda name: -candidates[name]["img_per_s"]["median"])
    ours = next((name for name in fastest_first if name.startswith(_OURS)), None)
    lines = [
        f"| loader | img/s | CPU ms/img | {(ours or _OURS).removesuffix(_PLAIN)} against it |",
        "|---|---|---|---|",
    ]
    for name in fastest_first:
        found = candidates[name]
        rate, cpu = found["img_per_s"], found["cpu_ms_per_img"]["median"]
        ratio = group["ratios"].get(f"{ours} / {name}")
        factor = "" if ratio is None else f"{ratio['median']:.2f} x"
        title = name.removesuffix(_PLAIN) if name.endswith(_PLAIN) else f"{name}, RandAugment"
        lines.append(
            f"| {title} | {rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f}) | "
            f"{cpu:.2f} | {factor} |"
        )
    left_out = group["left_out"].items()
    lines += [f"\n{name.removesuffix(_PLAIN)}: left out, {reason}." for name, reason in left_out]
    return lines


def profile_lines(report: Mapping[str, Any], where: str) -> list[str]:
    """Microseconds of an image by step, and of RandAugment by branch."""
    settings, alone = report["settings"], report["sums"]["the loader on 1 thread"]
    lines = [
        f"Where the CPU time of an image goes, microseconds, `{settings['randaugment']}`, "
        f"{settings['size_px']} px, batch {settings['batch']}, {where}",
        "",
        "| step | microseconds | share | in the kernel |",
        "|---|---|---|---|",
    ]
    for name, step in report["steps"].items():
        us, kernel = step["us"]["median"], step.get("kernel_us")
        shown = "" if kernel is None else f"{kernel:.0f}"
        lines.append(f"| {name} | {us:.0f} | {100 * us / alone:.1f} % | {shown} |")
    for name, us in report["sums"].items():
        lines.append(f"| {name} | {us:.0f} | {100 * us / alone:.1f} % | |")
    if report["branches"]:
        lines += [
            "",
            "RandAugment by branch: what one application takes, here and as DALI's operators, how "
            "often an image has it, and what that comes to.",
            "",
            "| branch | microseconds | in DALI | times an image | microseconds of an image |",
            "|---|---|---|---|---|",
        ]
        for name, branch in report["branches"].items():
            lines.append(
                f"| {name.lower().replace('_', ' ')} | {branch['us']['median']:.0f} | "
                f"{branch['dali_us']:.0f} | {branch['of_an_image']:.3f} | "
                f"{branch['us_of_an_image']:.1f} |"
            )
    return lines


def scaling_lines(report: Mapping[str, Any], where: str) -> list[str]:
    """What was measured, how far the model is from it, and its estimates for more cores."""
    settings = report["settings"]
    lines = [
        f"The loader on more cores, `{settings['randaugment']}`, {settings['size_px']} px. "
        f"Measured {where}",
        "",
        "| cores | img/s | CPU ms/img | of the model | its error |",
        "|---|---|---|---|---|",
    ]
    for name, check in report["validation"].items():
        cpu = report["measured"][name]["cpu_ms_per_img"]["median"]
        lines.append(
            f"| {name.split()[0]} | {check['measured']:.0f} | {cpu:.2f} | "
            f"{check['modelled']:.0f} | {check['error_percent']:+.1f} % |"
        )
    lines += [
        "",
        "Estimated by the model, which knows nothing of memory bandwidth or hyper-threads; one "
        f"process is held to {report['lock_limit_img_per_s']:,} img/s by Python's lock, which an "
        f"image keeps for {report['locked_us']:.0f} of its {report['total_us']:.0f} microseconds:",
        "",
        "| cores | as it is | one process | best | processes x pipelines | of all cores' time |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in report["estimates"].items():
        share = 100 * found["best"] / found["without_waiting"]
        lines.append(
            f"| {name.split()[0]} | {found['default']:,} | {found['one_process']:,} | "
            f"{found['best']:,} | {found['processes']} x {found['pipelines']} | {share:.0f} % |"
        )
    return lines
