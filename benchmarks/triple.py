"""The triple that every end-to-end figure comes as: loader alone, model alone, both together; and
which of them limits, with what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.report import Section, Summary, format_table, summarize

# Names of a candidate's parts.
LOADER, MODEL, TOGETHER = "loader alone", "model alone", "together"
# What training should reach of the slower of the two, and the most it should wait for data.
TARGET_SHARE = 0.97
TARGET_WAIT_PERCENT = 3.0
# Both together are never faster than the slower alone, and rounds on a quiet machine agree: what
# is beyond these was measured while the machine did something else, and says nothing.
_MAX_SHARE = 1.05
_MAX_RANGE = 0.3  # of the rounds, relative to their median

_ADVICE = {
    "loader": "give it more CPU cores (data.threads), smaller files (python -m dali_rsb.pack SRC "
    "DST --max-side 512), or let python -m dali_rsb.tune choose data.decode and "
    "data.hw_decoder_load",
    "model": "nothing to do for the loader; run.amp, run.compile and run.batch_per_device change "
    "the model's rate (python -m benchmarks.step CONFIG compares them)",
    "CPU": "loader and model share the cores, and together they need more of them than there are: "
    "more cores, a larger run.batch_per_device (a batch has a fixed cost) or smaller files "
    "(python -m dali_rsb.pack SRC DST --max-side 512) help",
}


@dataclass(frozen=True)
class Triple:
    """Images/s of loader alone, model alone and both together, over the rounds.

    `cpu_bound` is the rate at which loader and model, taking the CPU time that each takes alone,
    would keep all cores busy: where a GPU does the model's work it is far off, where the CPU does
    it, the loader's work has to come out of the model's cores.
    """

    loader: Summary
    model: Summary
    together: Summary
    cpu_bound: Summary
    share_of_slower: Summary
    share_of_bound: Summary  # the least of loader, model and cpu_bound
    data_wait_percent: Summary

    @classmethod
    def of(cls, sections: Mapping[str, Sequence[Section]], candidate: str, num_cpus: int) -> Triple:
        """The triple of a candidate whose parts have the names above; ratios within a round."""
        loader, model, together = (
            sections[f"{candidate}, {part}"] for part in (LOADER, MODEL, TOGETHER)
        )
        rounds = list(zip(loader, model, together, strict=True))
        cpu_bounds = [1000 * num_cpus / (a.cpu_ms_per_img + b.cpu_ms_per_img) for a, b, _ in rounds]
        slower = [min(a.img_per_s, b.img_per_s) for a, b, _ in rounds]
        bounds = [min(pair) for pair in zip(slower, cpu_bounds, strict=True)]
        rates = [both.img_per_s for *_, both in rounds]
        return cls(
            loader=summarize([section.img_per_s for section in loader]),
            model=summarize([section.img_per_s for section in model]),
            together=summarize(rates),
            cpu_bound=summarize(cpu_bounds),
            share_of_slower=summarize([a / b for a, b in zip(rates, slower, strict=True)]),
            share_of_bound=summarize([a / b for a, b in zip(rates, bounds, strict=True)]),
            data_wait_percent=summarize(
                [100 * (both.waited_s or 0.0) / both.wall_s for *_, both in rounds]
            ),
        )

    @property
    def limit(self) -> str:
        """What limits: "loader", "model" or "CPU", judged by the medians."""
        if self.cpu_bound.median < TARGET_SHARE * min(self.loader.median, self.model.median):
            return "CPU"
        return "loader" if self.loader.median < self.model.median else "model"

    @property
    def noise(self) -> str | None:
        """Why the rates cannot be judged, or None."""
        share = self.share_of_slower.median
        if share > _MAX_SHARE:
            return f"together they reached {100 * share:.0f} % of the slower, more than can be"
        parts = {LOADER: self.loader, MODEL: self.model, TOGETHER: self.together}
        for name, rate in parts.items():
            if rate.max - rate.min > _MAX_RANGE * rate.median:
                return f"{name}, the rounds went from {rate.min:.0f} to {rate.max:.0f} img/s"
        return None

    def verdict(self) -> str:
        """One line: what limits, and what to change; or that the machine was busy."""
        if self.noise is not None:
            return (
                f"no verdict, the machine was busy: {self.noise}. Measure again with nothing else "
                "running, or with more --rounds."
            )
        rate = {"loader": self.loader, "model": self.model, "CPU": self.cpu_bound}[self.limit]
        what = {
            "loader": "the loader",
            "model": "the model",
            "CPU": f"the CPU cores ({rate.median:.0f} img/s for loader and model at once)",
        }[self.limit]
        return (
            f"limited by {what}: {self.together.median:.0f} img/s together is "
            f"{100 * self.share_of_slower.median:.1f} % of the slower of loader and model and "
            f"{100 * self.share_of_bound.median:.1f} % of what the limit allows; "
            f"{self.data_wait_percent.median:.1f} % of the time is spent waiting for data. "
            f"To change: {_ADVICE[self.limit]}."
        )

    def as_json(self) -> dict[str, Any]:
        """All figures, the limit or else the noise, and the line that says what to change."""
        limit = None if self.noise else self.limit
        return asdict(self) | {"limit": limit, "noise": self.noise, "verdict": self.verdict()}


def triples_table(triples: Mapping[str, Triple]) -> str:
    """One row a candidate, in Markdown."""
    header = [
        "img/s",
        LOADER,
        MODEL,
        TOGETHER,
        "min-max",
        "of the slower",
        "of the bound",
        "waiting for data",
    ]
    rows = [
        [
            name,
            f"{triple.loader.median:.0f}",
            f"{triple.model.median:.0f}",
            f"{triple.together.median:.0f}",
            f"{triple.together.min:.0f}-{triple.together.max:.0f}",
            f"{100 * triple.share_of_slower.median:.1f} %",
            f"{100 * triple.share_of_bound.median:.1f} %",
            f"{triple.data_wait_percent.median:.1f} %",
        ]
        for name, triple in triples.items()
    ]
    return format_table(header, rows)
