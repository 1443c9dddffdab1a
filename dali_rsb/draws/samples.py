"""What a batch is before it is decoded: indices, labels and draws, as inputs of the graphs.

Everything here is a pure function of (seed, epoch, position) and the dataset index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dali_rsb.dataset import DatasetIndex
from dali_rsb.dataset.raw.places import HEIGHT, ROW_BYTES
from dali_rsb.dataset.windows import WindowImages, Windows
from dali_rsb.draws.crops import CROP_UNIFORMS, EvalGeometry, random_resized_crop
from dali_rsb.draws.erasing import ErasingDraws, ErasingPolicy
from dali_rsb.draws.mixing import MixDraws, MixPolicy
from dali_rsb.draws.order import (
    BatchLayout,
    EvalLayout,
    balanced_order,
    epoch_length,
    epoch_order,
)
from dali_rsb.draws.philox import Draw, Stream, uniforms
from dali_rsb.draws.randaugment import RandAugmentDraws, RandAugmentOperands, RandAugmentPolicy
from pipelines.types import INTERPOLATIONS, IS_RAW, RAW_PLACE, DecodeMode

RandAugmentBy = Literal["pipeline", "kernels"]

# Uniforms of the crop stream: the window, then flip and interpolation.
FLIP, INTERPOLATION = CROP_UNIFORMS, CROP_UNIFORMS + 1


@dataclass(frozen=True)
class TrainTransform:
    """Training augmentation of one image; names and defaults are timm's.

    Attributes:
        size_px: side of the square result.
        scale, ratio: RandomResizedCrop's ranges of area share and aspect ratio.
        hflip, vflip: probability of mirroring left-right, and of turning upside down.
        interpolation: "bilinear", "bicubic" or "random" (one of the two for each image).
        randaugment: policy, or None.
        decode_mode: which part of an image is decoded, and how often.
        gpu_share: "hybrid": share of the images that the GPU decodes, on average; which they are
            depends on the position alone.
        randaugment_by: who computes it: the DALI pipeline, or the kernels behind it.
    """

    size_px: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    interpolation: str = "random"
    randaugment: RandAugmentPolicy | None = None
    decode_mode: DecodeMode = "roi"
    vflip: float = 0.0
    gpu_share: float = 0.0
    randaugment_by: RandAugmentBy = "pipeline"

    @property
    def randaugment_layers(self) -> int:
        """Layers of RandAugment in the DALI pipeline."""
        if self.randaugment is None or self.randaugment_by == "kernels":
            return 0
        return self.randaugment.num_layers

    def graph_inputs(
        self, draw: Draw, widths: np.ndarray, heights: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Draw the augmentations as inputs of the training graph, the images left out.

        Args:
            draw: gives the uniforms of the rows.
            widths, heights: [rows], of the images in pixels.
        """
        numbers = draw(Stream.CROP, INTERPOLATION + 1)
        windows = random_resized_crop(
            widths, heights, numbers[:, :CROP_UNIFORMS], self.scale, self.ratio
        )
        is_whole = self._is_whole(draw, len(widths))
        inputs = self._window_inputs(windows, numbers[:, FLIP] < self.hflip, is_whole)
        if self.decode_mode == "hybrid":
            inputs["is_on_gpu"] = is_whole
        inputs["interpolation"] = self._interpolations(numbers[:, INTERPOLATION])
        if self.vflip > 0:
            numbers = draw(Stream.VERTICAL_FLIP, 1)
            _swap_ends(inputs["start"], inputs["end"], numbers[:, 0] < self.vflip, axis=0)
        if self.randaugment is not None and self.randaugment_by == "pipeline":
            draws = self._randaugment_draws(self.randaugment, draw)
            inputs |= self.randaugment.to_operands(draws, (self.size_px, self.size_px))
        return inputs

    def kernel_operands(self, draw: Draw) -> RandAugmentOperands | None:
        """Draw RandAugment where the kernels compute it; else None."""
        if self.randaugment is None or self.randaugment_by == "pipeline":
            return None
        draws = self._randaugment_draws(self.randaugment, draw)
        return draws.operands((self.size_px, self.size_px))

    @staticmethod
    def _randaugment_draws(policy: RandAugmentPolicy, draw: Draw) -> RandAugmentDraws:
        return policy.draw(draw(Stream.RANDAUGMENT, policy.num_uniforms))

    def _is_whole(self, draw: Draw, rows: int) -> np.ndarray:
        """bool [rows]: whether the whole image is decoded, not its window alone."""
        if self.decode_mode == "hybrid":
            return draw(Stream.DECODER, 1)[:, 0] < self.gpu_share
        return np.full(rows, self.decode_mode != "roi")

    def _window_inputs(
        self, windows: Windows, flip: np.ndarray, is_whole: np.ndarray
    ) -> dict[str, np.ndarray]:
        start = np.stack([windows.top, windows.left], axis=1)
        size = np.stack([windows.height, windows.width], axis=1)
        inputs = {}
        if self.decode_mode in ("roi", "hybrid"):
            inputs = {"anchor": start.astype(np.int32), "shape": size.astype(np.int32)}
            start = np.where(is_whole[:, None], start, 0)
        end = start + size
        _swap_ends(start, end, flip, axis=1)
        inputs |= {"start": start.astype(np.float32), "end": end.astype(np.float32)}
        return inputs

    def _interpolations(self, numbers: np.ndarray) -> np.ndarray:
        bilinear, bicubic = INTERPOLATIONS["bilinear"], INTERPOLATIONS["bicubic"]
        if self.interpolation == "random":
            return np.where(numbers < 0.5, bilinear, bicubic).astype(np.int32)
        return np.full(len(numbers), INTERPOLATIONS[self.interpolation], np.int32)


def _swap_ends(start: np.ndarray, end: np.ndarray, rows: np.ndarray, axis: int) -> None:
    """Swap the ends of some windows in y (axis 0) or x (axis 1): the resize mirrors as it goes."""
    start[rows, axis], end[rows, axis] = end[rows, axis], start[rows, axis].copy()


@dataclass(frozen=True)
class BatchSpec:
    """Which images make a batch: `indices` int64 [B]; rows from `num_valid` on are padding."""

    indices: np.ndarray
    num_valid: int
    epoch: int = 0
    positions: range = range(0)


@dataclass(frozen=True)
class PreparedRun:
    """One run of the graph: the rows of one or more batches, one batch after the other.

    Attributes:
        inputs: of the graph, by name.
        labels: int64 [rows].
        mixes: the mixing of each batch, or None.
        erasings: the erased boxes of each batch, or None.
        origins: int64 [rows, 2] as (y, x), the pixel of the stored image at which the image in the
            inputs begins; None if all are whole.
        sizes: int32 [rows, 3], height, width and channels of the whole images, with `origins`.
        randaugment: what is left to the kernels behind the pipeline: operands of the rows, or None.
    """

    inputs: dict[str, Any]
    labels: np.ndarray
    mixes: tuple[MixDraws | None, ...]
    erasings: tuple[ErasingDraws | None, ...]
    origins: np.ndarray | None = None
    sizes: np.ndarray | None = None
    randaugment: RandAugmentOperands | None = None

    @property
    def images(self) -> list[np.ndarray]:
        """Names of the images' files, or the encoded images: uint8 [num_bytes] each."""
        images: list[np.ndarray] = self.inputs["path" if "path" in self.inputs else "encoded"]
        return images

    @property
    def read_bytes(self) -> np.ndarray:
        """Bytes that are read of each image, int64 [rows], where they come from shards."""
        lengths = np.array([len(image) for image in self.images])
        if IS_RAW not in self.inputs:
            return lengths
        places = self.inputs[RAW_PLACE]
        rows = places[:, ROW_BYTES] * places[:, HEIGHT]
        return np.where(self.inputs[IS_RAW], rows, lengths)

    def take_whole_images(self, rows: Sequence[int]) -> None:
        """Correct the inputs of rows whose images are replaced by whole ones."""
        if self.origins is not None and self.sizes is not None and len(rows):
            _move_windows(self.inputs, np.array(rows), self.origins[rows])
            self.inputs["size"][rows] = self.sizes[rows]
            decode_raw(self.inputs, np.array(rows))


@dataclass(frozen=True)
class TrainSamples:
    """The training epochs of one process.

    With `balanced` classes are equally frequent (see `balanced_order`), which excludes `repeats`.
    """

    index: DatasetIndex
    layout: BatchLayout
    transform: TrainTransform
    mixing: MixPolicy | None = None
    mixing_off_epoch: int = 0
    repeats: int = 1
    seed: int = 0
    erasing: ErasingPolicy | None = None
    balanced: bool = False

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates of an epoch; a tail below one global batch is left out."""
        return epoch_length(len(self.index), self.repeats) // self.layout.global_batch

    def specs(self, epoch: int, first_update: int = 0) -> Iterator[BatchSpec]:
        """Yield the micro-batches of an epoch in order, from an update on."""
        order = self.order(epoch)
        for update in range(first_update, self.updates_per_epoch):
            for micro_batch in range(self.layout.accumulation):
                positions = self.layout.positions(update, micro_batch)
                indices = order[positions.start : positions.stop : positions.step]
                yield BatchSpec(indices, len(indices), epoch, positions)

    def order(self, epoch: int) -> np.ndarray:
        """The image at each position of an epoch, of all processes: int64 [positions]."""
        if self.balanced:
            return balanced_order(self.index.labels, self.seed, epoch)
        return epoch_order(len(self.index), self.seed, epoch, self.repeats)

    def stream(self, epoch: int, end_epoch: int, first_update: int = 0) -> Iterator[BatchSpec]:
        """Yield the micro-batches of all epochs before `end_epoch`, entering at an update."""
        for number in range(epoch, end_epoch):
            yield from self.specs(number, first_update if number == epoch else 0)

    def prepare(self, *specs: BatchSpec) -> PreparedRun:
        index, indices = self.index, joined_indices(specs)

        def draw(stream: Stream, width: int) -> np.ndarray:
            numbers = [uniforms(self.seed, s.epoch, stream, s.positions, width) for s in specs]
            return np.concatenate(numbers)

        widths, heights = index.widths[indices], index.heights[indices]
        inputs: dict[str, Any] = self.transform.graph_inputs(draw, widths, heights)
        is_shared = self.transform.decode_mode == "shared"
        images = index.window_images(indices, _windows_of(inputs), whole=is_shared)
        inputs |= image_inputs(index, images)
        if is_shared:
            inputs |= shared_decode_inputs(indices, inputs.get(IS_RAW))
        origins = images.origins
        _move_windows(inputs, np.arange(len(indices)), -origins)
        mixes = tuple(self.mix_draws(spec) for spec in specs)
        erasings = tuple(self.erasing_draws(spec) for spec in specs)
        labels = np.asarray(index.labels[indices])
        operands = self.transform.kernel_operands(draw)
        sizes = index.image_sizes(indices)
        return PreparedRun(inputs, labels, mixes, erasings, origins, sizes, operands)

    def mix_draws(self, spec: BatchSpec) -> MixDraws | None:
        """Who is mixed with whom in a batch, and how; None where nothing ever mixes."""
        if self.mixing is None:
            return None
        if 0 < self.mixing_off_epoch <= spec.epoch:
            return MixDraws.none(len(spec.indices))
        positions = np.asarray(spec.positions)
        return self.mixing.draw(self.seed, spec.epoch, positions, self.transform.size_px)

    def erasing_draws(self, spec: BatchSpec) -> ErasingDraws | None:
        """What is erased in a batch; None where nothing ever is."""
        if self.erasing is None:
            return None
        return self.erasing.draw(self.seed, spec.epoch, spec.positions, self.transform.size_px)


@dataclass(frozen=True)
class EvalSamples:
    """The evaluation images of one process, each once."""

    index: DatasetIndex
    layout: EvalLayout
    geometry: EvalGeometry

    def specs(self) -> Iterator[BatchSpec]:
        """Yield the batches in order; every process yields the same number."""
        for indices, num_valid in self.layout.batches():
            yield BatchSpec(indices, num_valid)

    def prepare(self, *specs: BatchSpec) -> PreparedRun:
        index, indices = self.index, joined_indices(specs)
        start, end = self.geometry.source_windows(index.widths[indices], index.heights[indices])
        inputs = index.image_inputs(indices) | {"start": start, "end": end}
        none = (None,) * len(specs)
        return PreparedRun(inputs, np.asarray(index.labels[indices]), none, none)


def joined_indices(specs: Sequence[BatchSpec]) -> np.ndarray:
    """The images of some batches, one batch after the other: int64 [rows]."""
    return np.concatenate([spec.indices for spec in specs])


def _windows_of(inputs: Mapping[str, np.ndarray]) -> Windows:
    """The windows that a batch is to be resized from."""
    if "anchor" in inputs:
        start, size = inputs["anchor"].astype(np.int64), inputs["shape"].astype(np.int64)
    else:
        ends = np.stack([inputs["start"], inputs["end"]]).astype(np.int64)  # swapped to mirror
        start, size = ends.min(axis=0), np.abs(ends[1] - ends[0])
    return Windows(start[:, 0], start[:, 1], size[:, 0], size[:, 1])


def _move_windows(inputs: Mapping[str, np.ndarray], rows: np.ndarray, by_px: np.ndarray) -> None:
    """Move the windows of some rows in the image that is decoded: by (y, x), [len(rows), 2]."""
    if "anchor" in inputs:
        inputs["anchor"][rows] += by_px.astype(np.int32)
        if "is_on_gpu" not in inputs:
            return
        is_whole = inputs["is_on_gpu"][rows]
        rows, by_px = rows[is_whole], by_px[is_whole]
    for name in ("start", "end"):
        inputs[name][rows] += by_px.astype(np.float32)


def image_inputs(index: DatasetIndex, images: WindowImages) -> dict[str, Any]:
    """The inputs of the training graph by which images come."""
    inputs: dict[str, Any] = {index.image_source: images.arrays, "size": images.sizes}
    if images.raw is not None:
        inputs |= {IS_RAW: images.raw.is_raw, RAW_PLACE: images.raw.places}
    return inputs


def shared_decode_inputs(
    indices: np.ndarray, is_raw: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Which rows decode, and which row's image each row takes; see pipelines.decoding.

    Rows that are read as pixels, `is_raw`, share nothing.
    """
    _, first, which = np.unique(indices, return_index=True, return_inverse=True)
    rows, source = np.arange(len(indices)), first[which]
    if is_raw is None:
        is_raw = np.zeros(len(indices), np.bool_)
    source = np.where(is_raw, rows, source)
    return {"is_first": (source == rows) & ~is_raw, "source": source.astype(np.int32)}


def decode_raw(inputs: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
    """Have rows decoded that were to be read as pixels."""
    if IS_RAW not in inputs:
        return
    was_raw = rows[inputs[IS_RAW][rows]]
    inputs[IS_RAW][was_raw], inputs[RAW_PLACE][was_raw] = False, -1
    if "is_first" in inputs:
        inputs["is_first"][was_raw] = True


def replace_indices(spec: BatchSpec, replacements: dict[int, int]) -> BatchSpec:
    """The same batch with some images replaced; positions, and so draws, stay."""
    if not replacements:
        return spec
    indices = np.array([replacements.get(int(i), int(i)) for i in spec.indices], np.int64)
    return replace(spec, indices=indices)
