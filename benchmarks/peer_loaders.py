"""Our loader beside all others that are installed, by turns: at equal pixels, and at anything.

    python -m benchmarks.peer_formats DATA PREPARED
    python -m benchmarks.peer_loaders DATA --prepared PREPARED [--pack NAME=PACK ...]

`same_pixels`: RandomResizedCrop with a filter drawn for each image, and flip, of the original
images' bytes: who delivers the pixels of timm, within a level of rounding. With `--randaugment
POLICY` also those that run timm's RandAugment. `anything_goes`: no side above 256 or 500 px, raw
pixels, one filter, any decoder; to be compared with our loader on packs of such images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.loader import (
    Group,
    RatePair,
    measure_groups,
    named_packs,
    our_loader,
)
from benchmarks.loader_options import add_task_options, task_of, task_settings
from benchmarks.peer_formats import FFCV_FILES, stored
from benchmarks.peers import (
    LoaderTask,
    dali_loader,
    ffcv_loader,
    timm_loader,
    torchvision_loader,
)
from benchmarks.peers_stored import (
    litdata_loader,
    spdl_loader,
    streaming_loader,
    tensor_loader,
    webdataset_loader,
)
from benchmarks.report import BatchCounts, Work, new_report
from dali_rsb.errors import UserError, run_command

Candidate = Callable[[], BatchCounts]
OURS = "dali_rsb"


@dataclass(frozen=True)
class Stored:
    """Where other forms of the images lie: `prepared` for other loaders, `packs` for ours."""

    prepared: Path | None = None
    packs: Mapping[str, Path] = field(default_factory=dict)


def _on(start: Callable[..., BatchCounts], task: LoaderTask, form: Stored, name: str) -> Candidate:
    """A candidate on a form of the images that was prepared."""
    return partial(_start_on, start, task, form.prepared, name)


def _start_on(
    start: Callable[..., BatchCounts], task: LoaderTask, prepared: Path | None, name: str
) -> BatchCounts:
    yield from start(replace(task, data=stored(prepared, name)))


def same_pixels_group(task: LoaderTask, form: Stored) -> Group:
    """Who delivers timm's pixels of the original images; without RandAugment, and with it."""
    plain = replace(task, randaugment=None)
    candidates: dict[str, Candidate] = {
        f"{OURS} plain": partial(our_loader, plain),
        "timm plain": partial(timm_loader, plain),
        "torchvision PIL plain": partial(torchvision_loader, plain, draws_filter=True),
        "torchvision tensors plain": partial(tensor_loader, plain),
        "SPDL, torchvision tensors plain": partial(spdl_loader, plain, "tensors"),
        "SPDL, timm's transforms plain": partial(spdl_loader, plain),
        "LitData, torchvision tensors plain": _on(
            partial(litdata_loader, pixels="tensors"), plain, form, "original_litdata"
        ),
        "Streaming, torchvision tensors plain": _on(
            partial(streaming_loader, pixels="tensors"), plain, form, "original_mds"
        ),
        "WebDataset, torchvision tensors plain": _on(
            partial(webdataset_loader, pixels="tensors"), plain, form, "original_shards"
        ),
    }
    if task.randaugment is not None:
        candidates |= {
            OURS: partial(our_loader, task),
            "timm": partial(timm_loader, task),
            "SPDL, timm's transforms": partial(spdl_loader, task),
            "LitData, timm's transforms": _on(litdata_loader, task, form, "original_litdata"),
            "Streaming, timm's transforms": _on(streaming_loader, task, form, "original_mds"),
            "WebDataset, timm's transforms": _on(webdataset_loader, task, form, "original_shards"),
        }
    return Group(candidates, _pairs(candidates))


def anything_goes_group(task: LoaderTask, form: Stored) -> Group:
    """Smaller images, raw pixels, any filter; RandomResizedCrop and flip, as some have no more."""
    plain = replace(task, randaugment=None)
    candidates: dict[str, Candidate] = {f"{OURS} originals plain": partial(our_loader, plain)}
    candidates |= {
        f"{OURS} {name} plain": partial(our_loader, replace(plain, data=path))
        for name, path in form.packs.items()
    }
    candidates |= {
        f"{_FFCV_TITLES[name]} plain": partial(
            ffcv_loader, plain, file=partial(stored, form.prepared, name)
        )
        for name in FFCV_FILES
    }
    tensors: dict[str, Any] = {"pixels": "tensors", "draws_filter": False}
    small = "256 px JPEG"
    candidates |= {
        f"timm {small} plain": _on(timm_loader, plain, form, "small_folder"),
        f"torchvision tensors {small} plain": _on(
            partial(tensor_loader, draws_filter=False), plain, form, "small_folder"
        ),
        "SPDL libav originals plain": partial(spdl_loader, plain, "libav"),
        f"SPDL libav {small} plain": _on(
            partial(spdl_loader, pixels="libav"), plain, form, "small_folder"
        ),
        f"LitData {small} plain": _on(
            partial(litdata_loader, **tensors), plain, form, "small_litdata"
        ),
        f"Streaming {small} plain": _on(
            partial(streaming_loader, **tensors), plain, form, "small_mds"
        ),
        f"WebDataset {small} plain": _on(
            partial(webdataset_loader, **tensors), plain, form, "small_shards"
        ),
        "DALI originals plain": partial(dali_loader, plain),
        f"DALI {small} plain": _on(dali_loader, plain, form, "small_folder"),
    }
    return Group(candidates, _pairs(candidates))


_FFCV_TITLES = {
    "ffcv_jpeg_500": "FFCV 500 px JPEG",
    "ffcv_half_raw_500": "FFCV 500 px half raw",
    "ffcv_raw_500": "FFCV 500 px raw",
    "ffcv_jpeg_256": "FFCV 256 px JPEG",
    "ffcv_half_raw_256": "FFCV 256 px half raw",
    "ffcv_raw_256": "FFCV 256 px raw",
}


def _pairs(candidates: Mapping[str, Candidate]) -> tuple[RatePair, ...]:
    """Each of ours against each other that does the same augmentation."""
    return tuple(
        RatePair(ours, theirs)
        for ours in candidates
        for theirs in candidates
        if ours.startswith(OURS)
        and not theirs.startswith(OURS)
        and ours.endswith(" plain") == theirs.endswith(" plain")
    )


def matching(group: Group, texts: Sequence[str] | None) -> Group:
    """The candidates whose name holds one of some texts; all for None."""
    if texts is None:
        return group
    candidates = {
        name: start
        for name, start in group.candidates.items()
        if any(text in name for text in texts)
    }
    if not candidates:
        raise UserError(f"--match: no candidate is named like {' or '.join(texts)}")
    return Group(candidates, _pairs(candidates))


GROUPS: dict[str, Callable[[LoaderTask, Stored], Group]] = {
    "same_pixels": same_pixels_group,
    "anything_goes": anything_goes_group,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peer_loaders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_task_options(parser, randaugment="none")
    parser.add_argument("--prepared", type=Path, help="folder of benchmarks.peer_formats")
    parser.add_argument(
        "--pack", nargs="+", action="extend", default=[], metavar="NAME=PACK", help="for our loader"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a timed section, at least")
    parser.add_argument("--batches", type=int, default=4, help="of a timed section at least")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument(
        "--match", nargs="+", metavar="TEXT", help="only candidates whose name holds one of these"
    )
    options = parser.parse_args(arguments)
    task = task_of(options)
    prepared = None if options.prepared is None else options.prepared.absolute()
    form = Stored(prepared, dict(named_packs(options.pack)))
    work = Work(options.seconds, options.batches, 2 * options.threads, round_to=options.threads)
    report = new_report(
        "peer_loaders",
        {
            **task_settings(task),
            "rounds": options.repeats,
            "seconds": work.seconds,
            "packs": sorted(form.packs),
            "match": options.match,
        },
    )
    asked = {name: matching(GROUPS[name](task, form), options.match) for name in options.only}
    measure_groups(report, asked, work, options.repeats, task, options.output)


if __name__ == "__main__":
    run_command(main)
