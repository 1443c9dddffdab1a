"""Writes the README's tables of results from the committed JSON: `python -m benchmarks.tables`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results"
START, END = "<!-- results: written by python -m benchmarks.tables -->\n", "<!-- end of results -->"

NAMES = {
    "dali_rsb": "dali_rsb",
    "timm": "timm's loader (PIL workers)",
    "DALI rand_augment": "DALI graph with DALI's rand_augment, two operations",
    "DALI rand_augment n=1": "the same, one operation (timm applies one on average)",
    "torchvision": "torchvision's DataLoader and RandAugment",
    "shared": "three crops of one decoded image",
    "roi": "each crop decoded for itself, its window alone",
    "full": "each crop decoded for itself, the whole image",
}


def render() -> str:
    """The text between the marks in the README."""
    loader = json.loads((RESULTS / "loader_cpu.json").read_text())
    machine, settings, data = loader["machine"], loader["settings"], loader["dataset"]
    versions = loader["versions"]
    lines = [
        f"Images per second that a loader makes ready, from {data['images']:,} JPEG files with "
        f"ImageNet's statistics (mean {data['mean_bytes'] / 1e3:.0f} kB), "
        f"{settings['size_px']} px, `{settings['randaugment']}`, batch {settings['batch']}, on "
        f"{machine['cpus_usable']} cores of an {machine['cpu']} without a GPU; median of "
        f"{settings['rounds']} alternating rounds (smallest to largest). torch "
        f"{versions['torch']}, DALI {versions['nvidia-dali-cuda120']}, timm {versions['timm']}.",
        "",
        *_table(loader["groups"]["loader"], "loader", "dali_rsb"),
        "",
        "Repeated augmentation (A1, A2), three copies of an image in a batch:",
        "",
        *_table(loader["groups"]["repeated_augmentation"], "decoding", "shared"),
        "",
    ]
    return "\n".join(lines) + "\n"


def _table(group: dict[str, Any], title: str, ours: str) -> list[str]:
    rows = [f"| {title} | img/s | CPU ms/img | {ours} against it |", "|---|---|---|---|"]
    for key, name in NAMES.items():
        if key not in group["contenders"]:
            continue
        contender = group["contenders"][key]
        speed, cpu = contender["img_per_s"], contender["cpu_ms_per_img"]
        ratio = group["ratios"].get(f"{ours} / {key}")
        factor = "" if ratio is None else f"{ratio['median']:.2f} x"
        rows.append(
            f"| {name} | {speed['median']:.0f} ({speed['min']:.0f} to {speed['max']:.0f}) | "
            f"{cpu['median']:.2f} | {factor} |"
        )
    return rows


def replace_results(readme: str) -> str:
    """The README with its results written anew."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + render() + END + after


if __name__ == "__main__":
    README.write_text(replace_results(README.read_text()))
