"""How many images per second a loader prepares, and where its CPU time goes.

    python -m benchmarks.loader DATA [--device cpu|cuda] [--only GROUP ...]

`loader`: ours against timm's, DALI's own graph and torchvision's, on the same files, with the same
augmentation (RandomResizedCrop, flip, RandAugment), batch and CPUs. The unit of work is a uint8
batch on the device, ready to be normalised there. Each also without RandAugment, and there FFCV's.
`stages`: our graph cut off after each stage.
`repeated_augmentation`: three copies of each image in a batch, decoded once or three times.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import pipeline_def
from nvidia.dali.data_node import DataNode

from benchmarks.imagenet_like import files_checksum
from benchmarks.loader_options import add_task_options, task_of, task_settings
from benchmarks.peers import (
    LoaderTask,
    count_images,
    dali_loader,
    dali_stock_loader,
    ffcv_loader,
    timm_loader,
    torchvision_loader,
)
from benchmarks.report import (
    BatchCounts,
    NotInstalledError,
    Work,
    format_table,
    measure,
    new_report,
    ratios,
    report_progress,
    sections_as_json,
    summarize,
    write_json,
)
from dali_rsb.dataset import open_index
from dali_rsb.draws.order import BatchLayout
from dali_rsb.draws.randaugment import RandAugmentPolicy
from dali_rsb.draws.samples import BatchSpec, TrainSamples, TrainTransform
from dali_rsb.errors import UserError, run_command
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import train_loader
from dali_rsb.loader.executor import RoundRobin
from dali_rsb.loader.rand_augment import RandAugmentBackend, with_backend
from dali_rsb.loader.settings import DecodeSetting, LoaderSettings
from pipelines.arguments import Decoding
from pipelines.decoding import decode, decode_hybrid, decode_shared, read_files
from pipelines.inputs import InputSpec, external_inputs
from pipelines.training import train_inputs
from pipelines.types import DecodeMode

PREFETCH = 3  # the default of the configuration
REPEATS_OF_RSB = 3  # repeated augmentation in the recipes A1 and A2


def our_samples(task: LoaderTask, decode_mode: DecodeMode, repeats: int) -> TrainSamples:
    """The training epochs that our candidates load; DATA is not written to."""
    policy = task.randaugment
    transform = TrainTransform(
        task.size_px,
        randaugment=None if policy is None else RandAugmentPolicy.parse(policy),
        decode_mode=decode_mode,
        gpu_share=task.hw_decoder_load,
    )
    with tempfile.TemporaryDirectory() as cache:
        index = open_index(task.data, Path(cache), progress=False)
    layout = BatchLayout(task.batch, task.batch)
    samples = TrainSamples(index, layout, transform, repeats=repeats)
    if samples.updates_per_epoch == 0:
        raise UserError(f"{task.data} has fewer images than one batch; lower --batch")
    return samples


def endless_specs(samples: TrainSamples) -> Iterator[BatchSpec]:
    """Epoch after epoch."""
    for epoch in itertools.count():
        yield from samples.specs(epoch)


def _settings(task: LoaderTask, decode: DecodeSetting) -> LoaderSettings:
    """As training has them where nobody has tuned, but for batches that share an iteration."""
    device = torch.device(task.device)
    return LoaderSettings.untuned(device, task.num_threads, PREFETCH, task.hw_decoder_load, decode)


def _decode_mode(settings: LoaderSettings, task: LoaderTask, shares_copies: bool) -> DecodeMode:
    return "shared" if shares_copies else settings.decode_mode(torch.device(task.device))


def our_loader(
    task: LoaderTask,
    decode: DecodeSetting = "host",
    repeats: int = 1,
    randaugment_by: RandAugmentBackend = "auto",
    shares_copies: bool = True,
) -> BatchCounts:
    """This project's training loader; on a GPU with RandAugment by either of its backends.

    Args:
        shares_copies: whether copies of an image in a batch share their decoding.

    Raises:
        NotInstalledError: the Triton kernels do not run on the device.
    """
    device, settings = torch.device(task.device), _settings(task, decode)
    mode = _decode_mode(settings, task, repeats > 1 and shares_copies)
    samples = our_samples(task, mode, repeats)
    samples = _with_backend(samples, randaugment_by, device)
    loader = train_loader(samples, settings, device, BadImages(samples.index, "raise"))
    batches = loader.batches(endless_specs(samples))
    return count_images((batch.images for batch in batches), task)


def _with_backend(
    samples: TrainSamples, backend: RandAugmentBackend, device: torch.device
) -> TrainSamples:
    try:
        return replace(samples, transform=with_backend(samples.transform, backend, device))
    except UserError as error:  # here a baseline less, no mistake
        raise NotInstalledError(str(error)) from error


# Inputs that the graph has when it ends after a stage.
_INPUTS_UNTIL = {
    "read": {"path"},
    "decode": {"path", "size", "anchor", "shape", "is_on_gpu", "is_first", "source"},
}


def _stage_inputs(stage: str, decode_mode: DecodeMode) -> tuple[InputSpec, ...]:
    specs = train_inputs(decode_mode, randaugment_layers=0)
    return tuple(spec for spec in specs if spec.name in _INPUTS_UNTIL[stage])


@pipeline_def(enable_conditionals=True)
def _stage_graph(stage: str, decode_mode: DecodeMode, decoding: Decoding) -> DataNode:
    """The training graph up to a stage; it puts out the shapes alone."""
    inputs = external_inputs(_stage_inputs(stage, decode_mode))
    if stage == "read":
        return read_files(inputs["path"]).shape()
    if decode_mode == "shared":
        sharing = (inputs["is_first"], inputs["source"])
        images = decode_shared(inputs["path"], inputs["size"], decoding, *sharing)
    elif decode_mode == "full":
        images = decode(read_files(inputs["path"]), inputs["size"], decoding)
    else:
        window = (inputs["anchor"], inputs["shape"])
        encoded, size = read_files(inputs["path"]), inputs["size"]
        if decode_mode == "hybrid":
            images = decode_hybrid(encoded, size, decoding, window, inputs["is_on_gpu"])
        else:
            images = decode(encoded, size, decoding, window)
    return images.shape()


def our_stage(
    task: LoaderTask, stage: str, decode: DecodeSetting = "host", repeats: int = 1
) -> BatchCounts:
    """Our loader cut off after `stage`: "read" or "decode"; copies share their decoding."""
    settings = _settings(task, decode)
    decode_mode = _decode_mode(settings, task, repeats > 1)
    samples = our_samples(replace(task, randaugment=None), decode_mode, repeats)
    division = settings.division
    names = [spec.name for spec in _stage_inputs(stage, decode_mode)]
    build = partial(
        _stage_graph,
        stage,
        decode_mode,
        Decoding(
            "cpu" if task.device == "cpu" else "gpu", settings.decoder, settings.hw_decoder_load
        ),
        batch_size=task.batch,
        num_threads=division.threads_each,
        device_id=task.device_id,
        prefetch_queue_depth=division.prefetch_each,
    )
    runner = RoundRobin(build, division.prefetch_each, division.pipelines)
    for number, spec in enumerate(endless_specs(samples), start=1):
        inputs = samples.prepare(spec).inputs
        runner.submit({name: inputs[name] for name in names})
        if number >= runner.prefetch:
            num_images = len(runner.take())
            if task.device != "cpu":
                torch.cuda.synchronize()
            yield num_images


def our_draws(task: LoaderTask) -> BatchCounts:
    """What the host does for our graph: order, draws, operands and paths; no image is touched."""
    samples = our_samples(task, "roi", repeats=1)
    for spec in endless_specs(samples):
        yield len(samples.prepare(spec).labels)


@dataclass(frozen=True)
class RatePair:
    """A ratio of images/s to report, and what it should reach at least."""

    ours: str
    theirs: str
    target: float | None = None


@dataclass(frozen=True)
class Group:
    """Candidates that are measured in alternation, and what of them is compared."""

    candidates: Mapping[str, Callable[[], BatchCounts]]
    comparisons: tuple[RatePair, ...] = ()
    # (stage, the one before it): what the stage itself costs is the difference.
    increments: tuple[tuple[str, str], ...] = ()


def loader_group(task: LoaderTask, packs: Mapping[str, Path] | None = None) -> Group:
    """Ours against the others, with RandAugment and without.

    Args:
        packs: packs of the same images by name, which our loader alone reads.
    """
    plain = replace(task, randaugment=None)
    without = {
        "dali_rsb plain": partial(our_loader, plain),
        "timm plain": partial(timm_loader, plain),
        "DALI plain": partial(dali_loader, plain),
        "DALI stock plain": partial(dali_stock_loader, plain),
        "torchvision plain": partial(torchvision_loader, plain),
        "FFCV plain": partial(ffcv_loader, plain),
        "FFCV half raw plain": partial(ffcv_loader, plain, share_raw=0.5, max_side_px=500),
    }
    first, *others = without
    comparisons = [RatePair(first, other) for other in others]
    with_packs = {}
    for name, path in (packs or {}).items():
        here = replace(task, data=path)
        without[f"dali_rsb {name} plain"] = partial(our_loader, replace(here, randaugment=None))
        comparisons += [RatePair(f"dali_rsb {name} plain", other) for other in (first, *others)]
        with_packs[f"dali_rsb {name}"] = partial(our_loader, here)
    if task.randaugment is None:
        return Group(without, tuple(comparisons))
    ours = {"dali_rsb": partial(our_loader, task)}
    if task.device != "cpu":
        ours = {
            "dali_rsb": partial(our_loader, task, randaugment_by="dali"),
            "dali_rsb kernels": partial(our_loader, task, randaugment_by="triton"),
        }
    return Group(
        {
            **ours,
            **with_packs,
            "timm": partial(timm_loader, task),
            "DALI rand_augment": partial(dali_loader, task),
            "DALI rand_augment n=1": partial(dali_loader, task, num_operations=1),
            "torchvision": partial(torchvision_loader, task),
            **without,
        },
        (
            RatePair("dali_rsb", "timm", target=1.35),
            RatePair("dali_rsb", "DALI rand_augment", target=1.25),
            RatePair("dali_rsb", "DALI rand_augment n=1"),
            RatePair("dali_rsb", "torchvision"),
            *(RatePair(name, "dali_rsb") for name in ours if name != "dali_rsb"),
            *(RatePair(name, other) for name in with_packs for other in ("dali_rsb", "timm")),
            *comparisons,
        ),
    )


def stages_group(task: LoaderTask) -> Group:
    """Our graph cut off after each stage."""
    copies = REPEATS_OF_RSB
    return Group(
        {
            "draws": partial(our_draws, task),
            "read": partial(our_stage, task, "read"),
            "decode roi": partial(our_stage, task, "decode", "host"),
            "decode full": partial(our_stage, task, "decode", "full"),
            f"decode shared x{copies}": partial(our_stage, task, "decode", "host", copies),
            "resize": partial(our_loader, replace(task, randaugment=None)),
            "RandAugment": partial(our_loader, task),
        },
        increments=(
            ("read", "draws"),
            ("decode roi", "read"),
            ("decode full", "read"),
            (f"decode shared x{copies}", "read"),
            ("resize", "decode roi"),
            ("RandAugment", "resize"),
        ),
    )


def repeated_augmentation_group(task: LoaderTask) -> Group:
    """Three copies of each image: one decode for all, or one for each copy."""
    alone = partial(our_loader, task, repeats=REPEATS_OF_RSB, shares_copies=False)
    return Group(
        {
            "shared": partial(our_loader, task, repeats=REPEATS_OF_RSB),
            "roi": partial(alone, decode="host"),
            "full": partial(alone, decode="full"),
        },
        (RatePair("shared", "roi", target=1.3), RatePair("shared", "full", target=1.3)),
    )


def packs_group(task: LoaderTask) -> Group:
    """Our loader on packs of the images, see `benchmarks.packs`."""
    from benchmarks.packs import stored_group  # which knows this module

    return stored_group(task)


GROUPS: dict[str, Callable[[LoaderTask], Group]] = {
    "loader": loader_group,
    "stages": stages_group,
    "repeated_augmentation": repeated_augmentation_group,
    "packs": packs_group,
}
_BY_DEFAULT = [name for name in GROUPS if name != "packs"]  # which takes as long as all of these


def read_dataset(root: Path) -> dict[str, Any]:
    """Read every file once, which brings it into the page cache, and describe the set.

    Raises:
        UserError: there is nothing to read.
    """
    paths = sorted(root.glob("[!.]*/*"))
    if not paths:
        raise UserError(f"{root} holds no class folders; run python -m benchmarks.imagenet_like")
    digests, num_bytes = {}, 0
    for path in paths:
        data = path.read_bytes()
        digests[path.relative_to(root).as_posix()] = hashlib.sha256(data).hexdigest()
        num_bytes += len(data)
    return {
        "images": len(paths),
        "mean_bytes": round(num_bytes / len(paths)),
        "sha256": files_checksum(digests),
    }


def named_packs(texts: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Names and folders of packs, as `NAME=FOLDER` names them.

    Raises:
        UserError: one does not, or there is no such folder.
    """
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not Path(path).is_dir():
            raise UserError(f"{text} names no pack: give NAME=FOLDER, such as tiles=/packs/tiles")
        yield name, Path(path).absolute()


def measure_group(
    group: Group, work: Work, num_repeats: int, num_cpus: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure a group; returns what the result file holds of it.

    A candidate whose process fails, or dies by a signal, is left out, and the reason is kept.
    """
    candidates = group.candidates
    measured = measure(candidates, work, num_repeats, num_cpus, progress, keep_going=True)
    sections = measured.sections
    if not sections:
        raise UserError(f"none of {', '.join(candidates)} could be measured; see the reasons above")
    result: dict[str, Any] = {
        "rounds": measured.num_rounds,
        "candidates": sections_as_json(sections),
        "left_out": measured.left_out,
    }
    result["ratios"] = {
        f"{pair.ours} / {pair.theirs}": asdict(ratios(sections[pair.ours], sections[pair.theirs]))
        | {"target": pair.target}
        for pair in group.comparisons
        if pair.ours in sections and pair.theirs in sections
    }
    result["stage_cpu_ms_per_img"] = {
        stage: asdict(
            summarize(
                [
                    after.cpu_ms_per_img - before.cpu_ms_per_img
                    for after, before in zip(sections[stage], sections[earlier], strict=True)
                ]
            )
        )
        for stage, earlier in group.increments
        if stage in sections and earlier in sections
    }
    return result


def group_tables(result: Mapping[str, Any]) -> str:
    """The tables of a measured group, in Markdown."""
    stages = result["stage_cpu_ms_per_img"]
    rows = []
    for name, measured in result["candidates"].items():
        rate, cpu = measured["img_per_s"], measured["cpu_ms_per_img"]
        row = [name, f"{rate['median']:.0f}", f"{rate['min']:.0f}-{rate['max']:.0f}"]
        row.append(f"{cpu['median']:.2f}")
        if stages:
            row.append(f"{stages[name]['median']:.2f}" if name in stages else "")
        rows.append(row)
    header = ["candidate", "img/s", "min-max", "CPU ms/img"]
    tables = [format_table(header + ["of this stage"] * bool(stages), rows)]
    if result["ratios"]:
        rows = [
            [
                name,
                f"{ratio['median']:.2f}",
                f"{ratio['min']:.2f}-{ratio['max']:.2f}",
                "" if ratio["target"] is None else f"{ratio['target']:.2f}",
            ]
            for name, ratio in result["ratios"].items()
        ]
        tables.append(format_table(["ratio of img/s", "median", "min-max", "target"], rows))
    tables += [f"{name}: left out, {reason}" for name, reason in result["left_out"].items()]
    return "\n\n".join(tables)


def measure_groups(
    report: dict[str, Any],
    groups: Mapping[str, Group],
    work: Work,
    num_rounds: int,
    task: LoaderTask,
    output: Path | None,
) -> None:
    """Measure groups by name, one after the other, into a report, which is written after each."""
    report["dataset"] = read_dataset(task.data)
    report["groups"] = {}
    for name, group in groups.items():
        result = measure_group(group, work, num_rounds, task.num_threads, report_progress)
        report["groups"][name] = result
        report["settings"]["rounds"] = result["rounds"]
        print(f"\n{name}\n\n{group_tables(result)}\n")
        if output is not None:  # a run takes minutes
            write_json(output, report)
        if result["rounds"] < num_rounds:
            break  # time was up


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_task_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of one timed section, at least"
    )
    parser.add_argument("--batches", type=int, default=8, help="of a timed section at least")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=_BY_DEFAULT)
    parser.add_argument(
        "--pack",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PACK",
        help="packs of the same images for our loader, in the group `loader`",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    task = task_of(options, options.device)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but PyTorch sees no GPU here; use --device cpu")
    packs = dict(named_packs(options.pack))
    # A queue of two batches for each worker process is what timm and torch fill ahead.
    work = Work(options.seconds, options.batches, 2 * options.threads, round_to=options.threads)
    report = new_report(
        "loader",
        {
            **task_settings(task),
            "device": task.device,
            "rounds": options.repeats,
            "seconds": work.seconds,
            "packs": sorted(packs),
        },
    )
    groups = GROUPS | {"loader": partial(loader_group, packs=packs)}
    asked = {name: groups[name](task) for name in options.only}
    measure_groups(report, asked, work, options.repeats, task, options.output)


if __name__ == "__main__":
    run_command(main)
