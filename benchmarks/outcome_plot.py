"""Draws docs/outcome_parity.svg: the accuracies of both programs by seed, as measured.

python -m benchmarks.outcome_plot
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dali_rsb.errors import UserError, run_command

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/outcome_parity_cpu.json"
PICTURE = ROOT / "docs/outcome_parity.svg"
COLOURS = {"dali_rsb": "#1b7837", "timm": "#762a83"}


def main() -> None:
    if not RESULTS.exists():
        raise UserError(f"{RESULTS} does not exist: run python -m benchmarks.outcome_parity first")
    draw(json.loads(RESULTS.read_text(encoding="utf-8"))["results"], PICTURE)


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a picture: for each setting a dot a seed, the mean, and two standard errors of it."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "outcome_parity"  # the same picture, the same bytes
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(3 * len(results), 3.2), squeeze=False)
    for axis, (setting, result) in zip(axes[0], results.items(), strict=True):
        for place, (program, top1) in enumerate(result["top1"].items()):
            error = result["deviation"][program] / len(top1) ** 0.5
            axis.plot([place] * len(top1), top1, "o", color=COLOURS[program], alpha=0.4)
            axis.errorbar(
                [place], [result["mean"][program]], yerr=[2 * error], fmt="_", color="black",
                capsize=4, markersize=18,
            )  # fmt: skip
        axis.set_title(setting.replace(", ", ",\n", 1), fontsize=9)
        axis.set_xticks(range(len(result["top1"])), result["top1"])
        axis.set_xlim(-0.6, len(result["top1"]) - 0.4)
    axes[0][0].set_ylabel("top-1, %")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    run_command(main)
