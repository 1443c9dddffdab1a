"""Whether images have Pillow's pixels, or are refused where Pillow refuses them, file by file.

    python -m benchmarks.pillow_pixels FOLDER [--mutations 2000] [--seed 0] [--output FILE]

FOLDER holds images of any kind, such as `Tests/images` of Pillow's source distribution. Each file,
and some mutations of files drawn from it, are taken as the loaders take them: `image_header` reads
the header and `coded_data` looks for stray markers, which says who decodes; what DALI rejects goes
to Pillow. DALI decodes the whole image and a window of it. All that happens in child processes: a
crash is a result.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from benchmarks.mutations import mutated
from benchmarks.report import new_report, report_progress, write_json
from dali_rsb.dataset.coded_data import is_cut_by_marker
from dali_rsb.dataset.image_header import ImageFormat, read_header_of_bytes
from dali_rsb.errors import run_command
from pipelines.arguments import Decoding
from pipelines.decoding import decode

MAX_PIXELS = 16_000_000  # of what is decoded here
MAX_BYTES_OF_MUTATION = 400_000

# What is as it should be ...
BY_DALI = "DALI, equal"
BY_PILLOW = "Pillow, by the header"
BY_PILLOW_AFTER_DALI = "Pillow, as DALI rejects it"
REFUSED = "refused by all"
TOO_LARGE = "too large to be tried"
GOOD = frozenset([BY_DALI, BY_PILLOW, BY_PILLOW_AFTER_DALI, REFUSED, TOO_LARGE])
# ... and what is not.
OTHER_PIXELS = "DALI, other pixels"
OTHER_WINDOW = "DALI, other pixels in a window"
ONLY_DALI = "DALI decodes what Pillow refuses"
ONLY_DALIS_WINDOW = "DALI decodes a window of what Pillow refuses"
ONLY_PILLOW = "left out, though Pillow decodes it"
OTHER_SIZE = "another size than Pillow's"
CRASH = "the process ended"


class _Decoder:
    """DALI's decoder for one image at a time."""

    def __init__(self) -> None:
        self._pipelines: dict[bool, Pipeline] = {}

    def decoded(
        self, data: bytes, width: int, height: int, window: bool
    ) -> npt.NDArray[np.uint8] | None:
        """uint8 HWC, or None if DALI rejects the image.

        Args:
            window: decode the window of `_window`, not the whole image.
        """
        if window not in self._pipelines:
            self._pipelines[window] = self._build(window)
        inputs = {
            "encoded": np.frombuffer(data, np.uint8),
            "size": np.array([height, width, 3], np.int32),
        }
        if window:
            top, left, bottom, right = _window(width, height)
            inputs["anchor"] = np.array([top, left], np.int32)
            inputs["shape"] = np.array([bottom - top, right - left], np.int32)
        try:
            (output,) = self._pipelines[window].run(**{k: [v] for k, v in inputs.items()})
        except RuntimeError:
            del self._pipelines[window]  # DALI drops a pipeline that failed
            return None
        return np.array(output.at(0))

    def _build(self, window: bool) -> Pipeline:
        pipeline = Pipeline(1, num_threads=1, device_id=None, prefetch_queue_depth=1)
        with pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            size = fn.external_source(name="size", dtype=types.INT32, ndim=1)
            ends = None
            if window:
                names = ("anchor", "shape")
                ends = tuple(fn.external_source(name=n, dtype=types.INT32, ndim=1) for n in names)
            pipeline.set_outputs(decode(encoded, size, Decoding(), ends))
        return pipeline


def _window(width: int, height: int) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a window that starts and ends inside, where it can."""
    return (
        height // 5,
        width // 3,
        max(height // 5 + 1, height * 2 // 3),
        width // 3 + width // 2 + 1,
    )


def verdict(data: bytes, decoder: _Decoder) -> str:
    """What becomes of one file."""
    width, height, image_format = read_header_of_bytes(np.frombuffer(data, np.uint8))
    if width * height > MAX_PIXELS:
        return TOO_LARGE
    expected = _pillow(data)
    if isinstance(expected, str):
        return expected
    if image_format == ImageFormat.UNREADABLE:
        return REFUSED if expected is None else ONLY_PILLOW
    if expected is not None and expected.shape != (height, width, 3):
        return OTHER_SIZE
    is_cut = image_format == ImageFormat.JPEG and is_cut_by_marker(data)
    if is_cut or image_format in (ImageFormat.OTHER, ImageFormat.GIF):
        return REFUSED if expected is None else BY_PILLOW
    whole = decoder.decoded(data, width, height, window=False)
    if whole is not None:
        if expected is None:
            return ONLY_DALI
        if not np.array_equal(whole, expected):
            return OTHER_PIXELS
    part = decoder.decoded(data, width, height, window=True)
    if part is not None:
        if expected is None:
            return ONLY_DALIS_WINDOW
        top, left, bottom, right = _window(width, height)
        if not np.array_equal(part, expected[top:bottom, left:right]):
            return OTHER_WINDOW
    if expected is None:
        return REFUSED
    return BY_DALI if whole is not None and part is not None else BY_PILLOW_AFTER_DALI


def _pillow(data: bytes) -> npt.NDArray[np.uint8] | str | None:
    """Pillow's pixels, uint8 HWC, `TOO_LARGE`, or None if it refuses the image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return TOO_LARGE
            return np.asarray(image.convert("RGB"))
    except Exception:  # Pillow's plugins raise nearly every type on damaged files
        return None


def tasks(folder: Path, num_mutations: int, seed: int) -> list[tuple[str, int | None]]:
    """Files relative to a folder, each as it is, and then drawn to be mutated with a seed."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    by_suffix = collections.defaultdict(list)
    for name in files:
        if 0 < (folder / name).stat().st_size <= MAX_BYTES_OF_MUTATION:
            by_suffix[Path(name).suffix.lower()].append(name)
    # Those that DALI may get; twice, as the others go to Pillow anyhow.
    plain = {".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
    suffixes = sorted(by_suffix) + 9 * sorted(plain & by_suffix.keys())
    rng = np.random.default_rng(seed)
    mutations = []
    for number in range(num_mutations):
        names = by_suffix[suffixes[rng.integers(len(suffixes))]]
        mutations.append((names[rng.integers(len(names))], seed * 1_000_000 + number))
    return [*((name, None) for name in files), *mutations]


def _encoded(folder: Path, name: str, seed: int | None) -> tuple[str, bytes]:
    data = (folder / name).read_bytes()
    return ("", data) if seed is None else mutated(data, np.random.default_rng(seed))


def _answer(folder: Path) -> None:
    """Child process: a line of JSON for each line of JSON."""
    warnings.simplefilter("ignore")
    decoder = _Decoder()
    for line in sys.stdin:
        kind, data = _encoded(folder, *json.loads(line))
        print(json.dumps([kind, verdict(data, decoder)]), flush=True)


def verdicts(folder: Path, todo: Sequence[tuple[str, int | None]]) -> Iterator[tuple[str, str]]:
    """Kind of mutation, and verdict, of each file; a crash costs one file its child process."""
    child: subprocess.Popen[str] | None = None
    command = [sys.executable, "-m", "benchmarks.pillow_pixels", str(folder), "--child"]
    for task in todo:
        child = child or subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders complain of every damaged file
            text=True,
            encoding="utf-8",
        )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(task) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if line:
            yield tuple(json.loads(line))
        else:
            child.wait()
            child = None
            yield _encoded(folder, *task)[0], CRASH
    if child is not None:
        child.communicate()


def compare(folder: Path, num_mutations: int, seed: int) -> dict[str, Any]:
    """Counts of verdicts, of files and of mutations by kind, and all that are wrong."""
    todo = tasks(folder, num_mutations, seed)
    files: collections.Counter[str] = collections.Counter()
    mutations: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wrong = []
    for number, (task, (kind, found)) in enumerate(
        zip(todo, verdicts(folder, todo), strict=True), start=1
    ):
        (files if task[1] is None else mutations[kind])[found] += 1
        if found not in GOOD:
            wrong.append({"file": task[0], "mutation": kind, "seed": task[1], "verdict": found})
            report_progress(f"{task[0]} {kind} {task[1]}: {found}")
        if number % 500 == 0:
            report_progress(f"{number} of {len(todo)}")
    total = sum(mutations.values(), collections.Counter())
    return {
        "files": dict(sorted(files.items())),
        "mutations": dict(sorted(total.items())),
        "mutations_by_kind": {k: dict(sorted(v.items())) for k, v in sorted(mutations.items())},
        "wrong": wrong,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--images", metavar="TEXT", help="what the folder holds, for the report")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        _answer(args.folder)
        return
    settings = {
        "mutations": args.mutations,
        "seed": args.seed,
        "max_pixels": MAX_PIXELS,
        "images": args.images,
    }
    result = new_report("pillow_pixels", settings) | compare(args.folder, args.mutations, args.seed)
    print(json.dumps({k: result[k] for k in ("files", "mutations")}, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    run_command(main)
