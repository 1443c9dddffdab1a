"""Whether windows of tiled JPEGs have the originals' pixels, over every kind of JPEG there is.

    python -m benchmarks.tile_pixels [--windows 10000] [--seed 0] [--output FILE]

Each original is transcoded, random windows of it and windows at its edges are put together from
tiles and decoded by DALI, and compared with the same windows that DALI decodes of the original and,
decoded whole, with what Pillow decodes. Equal means every level of every pixel.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import Pipeline, pipeline_def, types
from nvidia.dali.data_node import DataNode
from PIL import Image

from benchmarks.jpeg_kinds import SIZES, jpegs
from benchmarks.report import new_report, report_progress, write_json
from dali_rsb.dataset.tiles.assembly import Cut, Reader, cut
from dali_rsb.dataset.tiles.layout import CannotTileError, Tiles
from dali_rsb.dataset.tiles.transcoding import transcode
from dali_rsb.dataset.windows import Windows
from dali_rsb.errors import UserError, run_command
from pipelines.arguments import Decoding
from pipelines.decoding import decode
from pipelines.inputs import InputSpec, external_inputs, image_input, size_input

_WINDOWS_EACH = 50  # of one JPEG

_Bytes = npt.NDArray[np.uint8]


def windows_of(size: tuple[int, int], count: int, rng: np.random.Generator) -> Windows:
    """Windows of an image of some width and height: random ones, four at its edges, one of it all.

    They are two pixels wide at least where the image is: DALI decodes the one-pixel window at the
    left edge to other levels than Pillow, of the original too.
    """
    width, height = size
    windows = Windows(
        top=np.zeros(count, np.int64),
        left=np.zeros(count, np.int64),
        height=rng.integers(1, height + 1, count),
        width=rng.integers(min(2, width), width + 1, count),
    )
    windows.height[-1], windows.width[-1] = height, width
    windows.top[:] = rng.integers(0, height - windows.height + 1)
    windows.left[:] = rng.integers(0, width - windows.width + 1)
    windows.top[0], windows.left[1] = 0, 0
    windows.top[2] = height - windows.height[2]
    windows.left[3] = width - windows.width[3]
    return windows


def decoded_of_tiles(
    tiled: bytes, tiles: Tiles, size: tuple[int, int], windows: Windows
) -> tuple[list[_Bytes], list[_Bytes]]:
    """Windows put together from tiles: decoded as windows, and cut out of whole small images."""
    count = len(windows.top)
    images = np.zeros(count, np.int64)
    widths, heights = np.full((2, count), np.array(size)[:, None])
    found = cut(tiles, images, widths, heights, windows)
    encoded = [np.frombuffer(tiled, np.uint8)] * count
    small = assembled(found, [tiled] * len(found.rows))
    for row, jpeg in zip(found.rows.tolist(), small, strict=True):
        encoded[row] = jpeg
    top, left = (windows.top, windows.left) - found.origins.T
    inside = Windows(top, left, windows.height, windows.width)
    whole = [np.asarray(_open(jpeg.tobytes())) for jpeg in encoded]
    return decode_windows(encoded, found.sizes, inside), cut_out(whole, inside)


def assembled(found: Cut, encoded: Sequence[bytes]) -> list[npt.NDArray[np.uint8]]:
    """What `Cut.assemble` makes of encoded images in memory."""

    def reader(data: bytes) -> Reader:
        def read_into(target: memoryview, start: int) -> None:
            target[:] = data[start : start + len(target)]

        return read_into

    buffer = np.empty(found.bounds[-1], np.uint8)
    return found.assemble([reader(data) for data in encoded], buffer)


def decode_windows(
    encoded: Sequence[_Bytes], sizes: npt.NDArray[np.int32], windows: Windows
) -> list[_Bytes]:
    """Windows of JPEGs by DALI's decoder: uint8 [height, width, 3] each.

    Args:
        sizes: [len(encoded), 3], height, width and channels that their headers state.
    """
    start = np.stack([windows.top, windows.left], axis=1).astype(np.int32)
    size = np.stack([windows.height, windows.width], axis=1).astype(np.int32)
    (output,) = _graph(len(encoded)).run(
        encoded=list(encoded), size=sizes, anchor=start, shape=size
    )
    return [np.array(output.at(row)) for row in range(len(encoded))]


def cut_out(images: Sequence[_Bytes], windows: Windows) -> list[_Bytes]:
    """Windows of decoded images."""
    edges = zip(
        images,
        windows.top.tolist(),
        (windows.top + windows.height).tolist(),
        windows.left.tolist(),
        (windows.left + windows.width).tolist(),
        strict=True,
    )
    return [image[top:bottom, left:right] for image, top, bottom, left, right in edges]


def _open(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


@pipeline_def(num_threads=2, device_id=None, prefetch_queue_depth=1)
def _window_graph() -> DataNode:
    specs = (
        image_input("encoded"),
        size_input(),
        InputSpec("anchor", types.INT32, 1),
        InputSpec("shape", types.INT32, 1),
    )
    inputs = external_inputs(specs)
    window = (inputs["anchor"], inputs["shape"])
    return decode(inputs["encoded"], inputs["size"], Decoding(), window)


def _graph(batch_size: int) -> Pipeline:
    return _window_graph(batch_size=batch_size)


def _originals() -> Iterator[tuple[str, tuple[int, int], bytes]]:
    for seed in itertools.count():
        for size in SIZES:
            for kind, jpeg in jpegs(size, seed).items():
                yield kind, size, jpeg


def compare(num_windows: int, seed: int) -> dict[str, Any]:
    """Compare windows until there are so many; counts by kind."""
    rng = np.random.default_rng(seed)
    windows_by_kind: Counter[str] = Counter()
    different: Counter[str] = Counter()
    not_tiled: Counter[str] = Counter()
    for kind, size, jpeg in _originals():
        if windows_by_kind.total() >= num_windows:
            break
        windows = windows_of(size, _WINDOWS_EACH, rng)
        try:
            tiled, layout = transcode(jpeg)
        except CannotTileError as error:
            not_tiled[f"{kind}: {error}"] += 1
            continue
        original = [np.frombuffer(jpeg, np.uint8)] * _WINDOWS_EACH
        sizes = np.tile(np.array([size[1], size[0], 3], np.int32), (_WINDOWS_EACH, 1))
        by_dali = decode_windows(original, sizes, windows)
        by_pillow = cut_out([np.asarray(_open(jpeg))] * _WINDOWS_EACH, windows)
        small_by_dali, small_by_pillow = decoded_of_tiles(
            tiled, Tiles.of_layouts([layout]), size, windows
        )
        for levels in zip(by_dali, by_pillow, small_by_dali, small_by_pillow, strict=True):
            different[kind] += not all(np.array_equal(levels[0], other) for other in levels[1:])
        windows_by_kind[kind] += _WINDOWS_EACH
        report_progress(f"{windows_by_kind.total()} windows, {different.total()} different")
    return {
        "windows": windows_by_kind.total(),
        "different": different.total(),
        "windows_by_kind": dict(windows_by_kind),
        "different_by_kind": dict(+different),
        "sizes": ["{}x{}".format(*size) for size in SIZES],
        "not_tiled": dict(not_tiled),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tile_pixels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    report = new_report("tile_pixels", {"windows": options.windows, "seed": options.seed})
    report |= compare(options.windows, options.seed)
    if options.output is not None:
        write_json(options.output, report)
    print(f"{report['different']} of {report['windows']} windows differ")
    if report["different"]:
        raise UserError(f"windows differ of {', '.join(report['different_by_kind'])}")


if __name__ == "__main__":
    run_command(main)
