"""Writes the tables of README.md and docs/results.md: `python -m benchmarks.tables`.

They come from the committed JSON; the README has the two tables that matter most.

A result that is not committed is named as not measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.loader_tables import peers_lines, profile_lines, scaling_lines
from dali_rsb.checks.machine.software import DALI_DISTRIBUTIONS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGE = ROOT / "docs/results.md"
RESULTS = Path(__file__).parent / "results"
START, END = "<!-- results: written by python -m benchmarks.tables -->\n", "<!-- end of results -->"

NAMES = {
    "dali_rsb": "dali_rsb",
    "timm": "timm's loader (PIL workers)",
    "DALI rand_augment": "DALI graph with DALI's rand_augment, two operations",
    "DALI rand_augment n=1": "the same, one operation (timm applies one on average)",
    "torchvision": "torchvision's DataLoader and RandAugment",
}
PLAIN_NAMES = {
    "dali_rsb plain": "dali_rsb",
    "timm plain": "timm's loader (PIL workers)",
    "DALI plain": "DALI graph",
    "DALI stock plain": "DALI's stock classification graph, which normalises too",
    "torchvision plain": "torchvision's DataLoader",
    "FFCV plain": "FFCV, its file of JPEGs encoded again (quality 90)",
    "FFCV half raw plain": "FFCV, half of its file raw pixels, at most 500 px",
}
COPIES_NAMES = {
    "shared": "three crops of one decoded image",
    "roi": "each crop decoded for itself, its window alone",
    "full": "each crop decoded for itself, the whole image",
}
STEP_NAMES = {
    "timm": "timm's step",
    "timm compiled": "timm's step, compiled",
    "plain": "the plainest: cross-entropy, SGD, no mixing, no average",
}
KERNEL_TITLES = {"mix": "normalise and mix", "loss": "loss", "optimizer": "LAMB and average"}

Report = dict[str, Any]


def render(results: Path = RESULTS) -> str:
    """All tables: the text between the marks of docs/results.md."""
    lines: list[str] = []
    missing = []
    for names, (title, render_some) in TABLES.items():
        paths = (results / f"{name}.json" for name in names)
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
        if reports:
            lines += [*render_some(*reports), ""]
        else:
            missing.append(title)
    if missing:
        lines += [f"Not measured yet: {'; '.join(missing)}.", ""]
    return "\n".join(lines) + "\n"


def render_brief(results: Path = RESULTS) -> str:
    """The loader with A3's augmentation, training from end to end, and outcomes: for the README."""
    loader, train, outcomes = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("loader_cpu", "train_cpu", "outcome_parity_cpu")
    )
    lines = [*_loader_a3(loader), "", *_train(train), "", *_outcomes_table(outcomes)]
    return "\n".join(lines) + "\n"


def _loader(report: Report) -> list[str]:
    groups = report["groups"]
    lines = [
        *_loader_a3(report),
        "",
        "RandomResizedCrop and flip alone:",
        "",
        *_loader_table(groups["loader"], PLAIN_NAMES, "loader", "dali_rsb"),
    ]
    if "repeated_augmentation" in groups:
        lines += ["", *_copies(report)]
    return lines


def _copies(report: Report) -> list[str]:
    group = report["groups"]["repeated_augmentation"]
    return [
        f"Repeated augmentation (A1, A2), three copies of an image in a batch, {_where(report)}",
        "",
        *_loader_table(group, COPIES_NAMES, "decoding", "one decode"),
    ]


def _loader_a3(report: Report) -> list[str]:
    settings, data = report["settings"], report["dataset"]
    return [
        f"Images per second that a loader makes ready, from {data['images']:,} JPEG files with "
        f"ImageNet's statistics (mean {data['mean_bytes'] / 1e3:.0f} kB), "
        f"{settings['size_px']} px, `{settings['randaugment']}`, batch {settings['batch']}, "
        f"{_where(report)}",
        "",
        *_loader_table(report["groups"]["loader"], NAMES, "loader", "dali_rsb"),
    ]


def _loader_table(group: Report, names: Mapping[str, str], title: str, first: str) -> list[str]:
    """Candidates by their names; the first of these, `first`, is held against the others."""
    ours = next(iter(names))
    rows = [f"| {title} | img/s | CPU ms/img | {first} against it |", "|---|---|---|---|"]
    for key, name in names.items():
        if key not in group["candidates"]:
            continue
        candidate = group["candidates"][key]
        ratio = group["ratios"].get(f"{ours} / {key}")
        factor = "" if ratio is None else f"{ratio['median']:.2f} x"
        cpu = candidate["cpu_ms_per_img"]
        rows.append(
            f"| {name} | {_spread(candidate['img_per_s'])} | {cpu['median']:.2f} | {factor} |"
        )
    return rows


def _peers(report: Report) -> list[str]:
    return peers_lines(report, _where(report))


def _profile(report: Report) -> list[str]:
    return profile_lines(report, _where(report))


def _scaling(report: Report) -> list[str]:
    return scaling_lines(report, _where(report))


def _train(report: Report) -> list[str]:
    lines = [
        f"Training from end to end, `{report['settings']['config']}` "
        f"({_described(report)}), {_where(report)}",
        "",
        "| img/s | loader alone | model alone | together | of the slower | waiting for data |",
        "|---|---|---|---|---|---|",
    ]
    for name, triple in report["triples"].items():
        lines.append(
            f"| {name} | {triple['loader']['median']:.0f} | {triple['model']['median']:.0f} | "
            f"{_spread(triple['together'])} | {100 * triple['share_of_slower']['median']:.1f} % | "
            f"{triple['data_wait_percent']['median']:.1f} % |"
        )
    verdict: str = report["triples"]["dali_rsb"]["verdict"]
    return [*lines, "", f"dali_rsb is {verdict}"]


def _step(report: Report) -> list[str]:
    lines = [
        f"One training step on synthetic data, `{report['settings']['config']}` "
        f"({_described(report)}), milliseconds of an update of "
        f"{report['settings']['global_batch']} images, {_where(report)}",
        "",
        "| step | img/s | mix | forward | backward | optimizer, average | memory GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, step in report["candidates"].items():
        times = (
            f"{step['ms_per_update'][part]['median']:.1f}"
            for part in ("mix", "forward", "backward", "optimizer")
        )
        shown = STEP_NAMES.get(name, name)
        if name == report["fastest"] and len(report["candidates"]) > 1:
            shown = f"**{shown}**"
        memory = step.get("peak_memory_gib")
        lines.append(
            f"| {shown} | {_spread(step['img_per_s'])} | {' | '.join(times)} | "
            f"{'' if memory is None else f'{memory:.1f}'} |"
        )
    return lines


def _kernel(report: Report) -> list[str]:
    names = list(dict.fromkeys(n for case in report["cases"].values() for n in case["candidates"]))
    lines = [
        f"Microseconds, {KERNEL_TITLES[report['benchmark']]}; the floor is the time to move the "
        f"bytes at the measured copy bandwidth, {_where(report)}",
        "",
        f"| case | floor | {' | '.join(names)} |",
        "|---" * (2 + len(names)) + "|",
    ]
    for case, result in report["cases"].items():
        times = (
            f"{result['candidates'][name]['us']['median']:.0f}"
            if name in result["candidates"]
            else ""
            for name in names
        )
        lines.append(f"| {case} | {result['floor_us']:.0f} | {' | '.join(times)} |")
    return lines


def _references(*reports: Report) -> list[str]:
    """What the kernels' counterparts on a CPU take, in one table."""
    lines = [
        "What stands for the kernels on a CPU, milliseconds (mixing 256 images of 160 px; loss of "
        f"512 x 1,000 logits), {_where(reports[0])}",
        "",
        "| operation | dali_rsb | timm | timm's time over ours |",
        "|---|---|---|---|",
    ]
    for report in reports:
        for case, result in report["cases"].items():
            ours, theirs = (result["candidates"][name] for name in ("dali_rsb", "timm"))
            lines.append(
                f"| {KERNEL_TITLES[report['benchmark']]}: {case} | {_ms(ours['us'])} | "
                f"{_ms(theirs['us'])} | {theirs['times_ours']['median']:.1f} x |"
            )
    return lines


def _outcomes(report: Report) -> list[str]:
    picture = "![The accuracies of all seeds](outcome_parity.svg)"
    return [*_outcomes_table(report), "", picture]


def _outcomes_table(report: Report) -> list[str]:
    settings, machine = report["settings"], report["machine"]
    lines = [
        "Top-1 in percent after training by dali_rsb and by timm's train.py "
        f"({settings['timm']}) with the same hyper-parameters, mean of {settings['seeds']} seeds "
        f"each (deviation), on {machine['cpus_usable']} cores of an {machine['cpu']}; the seeds "
        "mean other random numbers to the two.",
        "",
        "| images and recipe | dali_rsb | timm | difference | standard error | within two |",
        "|---|---|---|---|---|---|",
    ]
    for setting, result in report["results"].items():
        ours, theirs = (
            f"{result['mean'][program]:.2f} ({result['deviation'][program]:.2f})"
            for program in ("dali_rsb", "timm")
        )
        within = "yes" if result["within_two_standard_errors"] else "no"
        lines.append(
            f"| {setting} | {ours} | {theirs} | {result['difference']:+.2f} | "
            f"{result['standard_error']:.2f} | {within} |"
        )
    return lines


def _ms(us: Mapping[str, float]) -> str:
    return f"{us['median'] / 1e3:.1f} ({us['min'] / 1e3:.1f} to {us['max'] / 1e3:.1f})"


def _spread(rate: Mapping[str, float]) -> str:
    return f"{rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f})"


def _described(report: Report) -> str:
    settings = report["settings"]
    average = ", average of the weights" if settings["ema"] else ""
    return (
        f"{settings['model']}, {settings['size_px']} px, batch {settings['global_batch']}, "
        f"{settings['optimizer']}{average}"
    )


def _where(report: Report) -> str:
    """On which machine, how often, with what."""
    machine, versions = report["machine"], report["versions"]
    cpu = f"{machine['cpus_usable']} cores of an {machine['cpu']}"
    place = f"{cpu} without a GPU" if "gpu" not in machine else f"one {machine['gpu']}, {cpu}"
    dali = next(versions[name] for name in DALI_DISTRIBUTIONS if name in versions)
    return (
        f"on {place}; median of {report['settings']['rounds']} alternating rounds (smallest to "
        f"largest). torch {versions['torch']}, DALI {dali}, timm {versions['timm']}."
    )


# For result files that share a table what they hold, and what writes it from those there are.
TABLES: dict[tuple[str, ...], tuple[str, Callable[..., list[str]]]] = {
    ("loader_cpu",): ("the loader on a CPU", _loader),
    ("loader_copies_cpu",): ("repeated augmentation on a CPU", _copies),
    ("peer_loaders_cpu",): ("the loader beside all others on a CPU", _peers),
    ("peer_small_cpu",): ("all loaders on images of 256 px on a CPU", _peers),
    ("peer_formats_cpu",): ("packs beside FFCV's files on a CPU", _peers),
    ("loader_profile_cpu",): ("the profile of the loader on a CPU", _profile),
    ("scaling_cpu",): ("the loader on more cores", _scaling),
    ("train_cpu",): ("training from end to end on a CPU", _train),
    ("mix_cpu", "loss_cpu", "optimizer_cpu"): ("the kernels' counterparts on a CPU", _references),
    ("outcome_parity_cpu",): ("outcomes beside timm's train.py", _outcomes),
    ("loader_gpu",): ("the loader on a GPU", _loader),
    ("step_gpu",): ("the training step on a GPU", _step),
    ("step_compiled_gpu",): ("the compiled training step on a GPU", _step),
    ("train_gpu",): ("training from end to end on a GPU", _train),
    ("mix_gpu",): ("the mixing kernel on a GPU", _kernel),
    ("loss_gpu",): ("the loss kernel on a GPU", _kernel),
    ("optimizer_gpu",): ("the optimizer's kernels on a GPU", _kernel),
}


def replace_results(text: str, results: str) -> str:
    """A page with its results written again."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return before + START + results + END + after


if __name__ == "__main__":
    README.write_text(replace_results(README.read_text(), render_brief()))
    PAGE.write_text(replace_results(PAGE.read_text(), render()))
