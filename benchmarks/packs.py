"""What a pack gains: bytes read, CPU time of reading and decoding, and our loader's rate on it.

    python -m benchmarks.packs FOLDER NAME=PACK ... [--rounds 9] [--output FILE]
    python -m benchmarks.loader FOLDER --only packs

The packs hold the images of FOLDER, such as `tiles=/packs/tiles` of `dali-rsb pack --tiles FOLDER
/packs/tiles`. All are measured in alternation, with the same windows of the same images; everything
lies in memory, so a disk or network that fewer bytes relieve is not in the rates. The second form
packs FOLDER by itself, as FFCV stores ImageNet, and measures beside FFCV.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, pipeline_def
from nvidia.dali.data_node import DataNode

from benchmarks.loader import (
    Group,
    RatePair,
    endless_specs,
    group_tables,
    measure_group,
    named_packs,
    our_loader,
    our_samples,
    read_dataset,
)
from benchmarks.peers import LoaderTask, ffcv_loader
from benchmarks.report import (
    BatchCounts,
    NotInstalledError,
    Work,
    new_report,
    report_progress,
    summarize,
    write_json,
)
from dali_rsb.dataset import open_index
from dali_rsb.dataset.index import DatasetIndex
from dali_rsb.dataset.packing import PackOptions, pack
from dali_rsb.dataset.raw.reading import read_window
from dali_rsb.draws.samples import PreparedRun, TrainSamples
from dali_rsb.errors import UserError, run_command
from dali_rsb.system.cpus import available_cpus
from pipelines.arguments import Decoding
from pipelines.decoding import decode, nothing_decoded, read_images
from pipelines.inputs import external_inputs
from pipelines.training import train_inputs
from pipelines.types import IS_RAW, RAW_PLACE, ImageSource

ORIGINALS = "originals"


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a dataset, those of an index inside it included, but no copies."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.parent.name != "converted")


def bytes_per_window(samples: TrainSamples, num_batches: int) -> float:
    """Mean bytes that reach the decoder for an image."""
    specs = endless_specs(samples)
    sizes = [_bytes_of(samples.index, samples.prepare(next(specs))) for _ in range(num_batches)]
    return float(np.concatenate(sizes).mean())


def _bytes_of(index: DatasetIndex, run: PreparedRun) -> np.ndarray:
    if index.image_source == "encoded":
        return run.read_bytes
    return np.array([Path(path.tobytes().decode()).stat().st_size for path in run.images])


# Inputs of a pipeline that decodes windows, beside the images; the last one of raw packs alone.
_DECODED_BY = ("size", "anchor", "shape", IS_RAW)


@pipeline_def(num_threads=1, device_id=None, prefetch_queue_depth=1, enable_conditionals=True)
def _window_graph(source: ImageSource, has_raw: bool) -> DataNode:
    specs = train_inputs("roi", 0, source, "places" if has_raw else None)
    names = (source, *_DECODED_BY)
    inputs = external_inputs([spec for spec in specs if spec.name in names])
    if not has_raw:
        images = _decoded(inputs)
    elif inputs[IS_RAW]:
        images = nothing_decoded("cpu")
    else:
        images = _decoded(inputs)
    return images


def _decoded(inputs: Mapping[str, DataNode]) -> DataNode:
    window = (inputs["anchor"], inputs["shape"])
    return decode(read_images(inputs), inputs["size"], Decoding(), window)


def cpu_ms_per_image(samples: Mapping[str, TrainSamples], rounds: int) -> dict[str, dict[str, Any]]:
    """CPU time of a batch's preparation on the calling thread, and of decoding it, by dataset.

    Preparation draws the augmentations and, of tiles, puts small images together. Decoding reads,
    page faults included, and decodes on one thread; of images that are pixels it reads alone.
    """
    specs = {name: endless_specs(each) for name, each in samples.items()}
    graphs = {name: _graph(each) for name, each in samples.items()}
    prepare_ms: dict[str, list[float]] = {name: [] for name in samples}
    decode_ms: dict[str, list[float]] = {name: [] for name in samples}
    for number in range(rounds):
        for name in list(samples)[:: 1 if number % 2 else -1]:
            spec = next(specs[name])
            start_s = time.thread_time()
            inputs = samples[name].prepare(spec).inputs
            prepare_ms[name].append(1000 * (time.thread_time() - start_s) / len(spec.indices))
            names = (*_DECODED_BY, samples[name].index.image_source)
            fed = {key: inputs[key] for key in names if key in inputs}
            start_s = time.process_time()
            graphs[name].run(**fed)
            if IS_RAW in inputs:
                for place in inputs[RAW_PLACE][inputs[IS_RAW]].tolist():
                    read_window(place)
            decode_ms[name].append(1000 * (time.process_time() - start_s) / len(spec.indices))
    return {
        name: {
            "prepare": asdict(summarize(prepare_ms[name])),
            "decode": asdict(summarize(decode_ms[name])),
            "decode_to_originals": asdict(
                summarize(np.divide(decode_ms[name], decode_ms[ORIGINALS]).tolist())
            ),
        }
        for name in samples
    }


def _graph(samples: TrainSamples) -> Pipeline:
    index = samples.index
    return _window_graph(
        index.image_source, index.store.has_raw, batch_size=samples.layout.batch_per_device
    )


def rates_group(task: LoaderTask, data: Mapping[str, Path]) -> Group:
    """Our loader on every dataset, with RandAugment and without."""
    candidates = {}
    for name, path in data.items():
        here = replace(task, data=path)
        candidates[name] = functools.partial(our_loader, here)
        candidates[f"{name}, plain"] = functools.partial(
            our_loader, replace(here, randaugment=None)
        )
    packs = [name for name in data if name != ORIGINALS]
    comparisons = [RatePair(name, ORIGINALS) for name in packs]
    comparisons += [RatePair(f"{name}, plain", f"{ORIGINALS}, plain") for name in packs]
    return Group(candidates, tuple(comparisons))


# As FFCV stores ImageNet: half of the images as pixels with no side above 500 px, or all JPEGs of
# quality 90; and at 256 px.
STORED_AS = {
    "tiles": PackOptions(tiles=True),
    "500 px half raw": PackOptions(max_side=500, quality=90, raw=0.5),
    "500 px half raw tiles": PackOptions(max_side=500, raw=0.5, tiles=True),
    "256 px q90": PackOptions(max_side=256, quality=90),
    "256 px q90 half raw": PackOptions(max_side=256, quality=90, raw=0.5),
    "256 px raw": PackOptions(max_side=256, raw=1.0),
}


def packed_loader(task: LoaderTask, options: PackOptions) -> BatchCounts:
    """Our loader on a pack of the task's images, in a folder for temporary files.

    Raises:
        NotInstalledError: tiles take jpegtran.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(task.data, Path(folder) / "index", progress=False)
        target = Path(folder) / "pack"
        try:
            pack(index, target, options, progress=False)
        except UserError as error:  # here a candidate less, no mistake
            raise NotInstalledError(str(error)) from error
        yield from our_loader(replace(task, data=target))


def stored_group(task: LoaderTask) -> Group:
    """Our loader on the files and on packs, without RandAugment also beside FFCV; and with it."""
    plain = replace(task, randaugment=None)
    candidates = {
        "files plain": functools.partial(our_loader, plain),
        "FFCV plain": functools.partial(ffcv_loader, plain),
        "FFCV half raw plain": functools.partial(
            ffcv_loader, plain, share_raw=0.5, max_side_px=500
        ),
    }
    candidates |= {
        f"{name} plain": functools.partial(packed_loader, plain, options)
        for name, options in STORED_AS.items()
    }
    comparisons = [RatePair(f"{name} plain", "files plain") for name in STORED_AS]
    comparisons += [
        RatePair("tiles plain", "FFCV plain"),
        RatePair("500 px half raw plain", "FFCV half raw plain", target=1.0),
        RatePair("500 px half raw tiles plain", "FFCV half raw plain"),
    ]
    if task.randaugment is not None:
        candidates["files"] = functools.partial(our_loader, task)
        for name, options in STORED_AS.items():
            candidates[name] = functools.partial(packed_loader, task, options)
        comparisons += [RatePair(name, "files") for name in STORED_AS]
    return Group(candidates, tuple(comparisons))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of class folders")
    parser.add_argument("packs", nargs="+", metavar="NAME=PACK")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--randaugment", default="rand-m6-mstd0.5-inc1", metavar="POLICY")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="and CPUs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a timed section, at least")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    data = {ORIGINALS: options.folder.absolute(), **dict(named_packs(options.packs))}
    task = LoaderTask(
        data[ORIGINALS], options.batch, options.size, options.randaugment, options.threads, "cpu"
    )
    report = new_report(
        "packs",
        {
            "batch": options.batch,
            "size_px": options.size,
            "randaugment": options.randaugment,
            "threads": options.threads,
            "rounds": options.rounds,
            "seconds": options.seconds,
        },
    )
    report["dataset"] = read_dataset(task.data)
    samples = {
        name: our_samples(replace(task, data=path, randaugment=None), "roi", 1)
        for name, path in data.items()
    }
    report["bytes"] = {
        name: {
            "dataset": folder_bytes(path),
            "per_window": round(bytes_per_window(samples[name], 7)),
        }
        for name, path in data.items()
    }
    of_originals = report["bytes"][ORIGINALS]
    for sizes in report["bytes"].values():
        sizes["dataset_to_originals"] = round(sizes["dataset"] / of_originals["dataset"], 4)
        sizes["per_window_to_originals"] = round(
            sizes["per_window"] / of_originals["per_window"], 4
        )
    report_progress(str(report["bytes"]))
    report["cpu_ms_per_img"] = cpu_ms_per_image(samples, 6 * (options.rounds // 6 + 1))
    report_progress(str(report["cpu_ms_per_img"]))
    work = Work(options.seconds, 4, num_warmup_batches=4)
    group = rates_group(task, data)
    report["rates"] = measure_group(group, work, options.rounds, options.threads, report_progress)
    print(f"\n{group_tables(report['rates'])}\n")
    if options.output is not None:
        write_json(options.output, report)


if __name__ == "__main__":
    run_command(main)
