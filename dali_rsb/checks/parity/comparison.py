"""The graphs of one device beside Pillow, stage after stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from nvidia.dali import Pipeline, pipeline_def
from nvidia.dali.data_node import DataNode
from PIL import Image

from dali_rsb.checks.parity.operations import BATCH_SIZE, Operations
from dali_rsb.checks.parity.pillow import apply_operation, crop_resize_flip
from dali_rsb.checks.parity.report import Limits, Stage
from dali_rsb.dataset import DatasetIndex
from dali_rsb.draws.crops import EvalGeometry
from dali_rsb.draws.operations import RECORDS
from dali_rsb.draws.order import BatchLayout, EvalLayout
from dali_rsb.draws.philox import Stream, uniforms
from dali_rsb.draws.randaugment import (
    OPERATIONS,
    RandAugmentPolicy,
    fill_color,
)
from dali_rsb.draws.samples import BatchSpec, EvalSamples, TrainSamples, TrainTransform
from dali_rsb.loader.bad_images import BadImages
from dali_rsb.loader.builders import eval_loader, train_loader
from dali_rsb.loader.loader import Loader
from dali_rsb.loader.pillow import eval_transform
from dali_rsb.loader.settings import LoaderSettings
from dali_rsb.system.cpus import threads_per_process
from pipelines.arguments import Decoding
from pipelines.decoding import decode, read_images
from pipelines.inputs import external_inputs, image_input, size_input
from pipelines.types import INTERPOLATIONS, DecodeMode, Decoder, ImageSource

EXACT = Limits(largest=0)
RESIZED = Limits(mean=0.3, within_2=0.995)
POINT_OR_BLEND = Limits(largest=1, mean=0.02)
GEOMETRIC = Limits(mean=0.6, within_2=0.99)

WARPS = tuple(record.name for record in RECORDS if record.warp is not None)
WITHOUT_MAGNITUDE = tuple(record.name for record in RECORDS if not record.has_magnitude)
WITHOUT_DIRECTION = tuple(record.name for record in RECORDS if not record.has_direction)
MAGNITUDES = (0.5, 3.0, 6.3, 7.0, 10.0)

POLICY_NAME = "rand-m7-mstd0.5-inc1"  # of the recipes A1 and A2
POLICY = RandAugmentPolicy.parse(POLICY_NAME)
FILL = fill_color((0.485, 0.456, 0.406))  # mean of ImageNet
CROP_RATIO = 0.95  # of the recipes' evaluation
NUM_EPOCHS = 4  # random crops of each image
PREFETCH = 2


@pipeline_def
def _decode_graph(decoding: Decoding, source: ImageSource) -> DataNode:
    inputs = external_inputs((image_input(source), size_input()))
    return decode(read_images(inputs), inputs["size"], decoding)


class Comparison:
    """The graphs of one device beside Pillow, on some images of a dataset.

    Args:
        images: int64 [n], which ones; Pillow must be able to decode them.
        size_px: side of the square results.
        device_id: the GPU, or None for the CPU graphs.
    """

    def __init__(
        self, index: DatasetIndex, images: np.ndarray, size_px: int, device_id: int | None
    ) -> None:
        self._index = index
        self._images = images
        self._size_px = size_px
        self._device_id = device_id
        self._device: Literal["cpu", "gpu"] = "cpu" if device_id is None else "gpu"
        self._bad_images = BadImages(index, "raise")
        self._decoders: dict[Decoder, Pipeline] = {}
        num_threads = threads_per_process(1)
        self._options: dict[str, Any] = {"num_threads": num_threads, "device_id": device_id}
        self._loader_parts = (
            LoaderSettings(num_threads, PREFETCH),
            torch.device("cpu" if device_id is None else f"cuda:{device_id}"),
            self._bad_images,
        )

    def stages(self) -> Iterator[Stage]:
        """Yield the stages, each compared on all images. A GPU's JPEG decoder has no limits."""
        on_cpu = self._device_id is None
        yield self._decode("decode", "host", EXACT)
        if not on_cpu:
            yield self._decode("decode, by the GPU", "gpu", None)
        for interpolation in INTERPOLATIONS:
            yield self._crop(interpolation, "roi")
        yield self._crop("bilinear", "full")
        for name in OPERATIONS:
            yield self._operation(name, "bilinear", GEOMETRIC if name in WARPS else POINT_OR_BLEND)
        for name in WARPS:
            yield self._operation(name, "bicubic", None)
        yield self._train()
        yield self._eval("evaluation transform", self._decoded, RESIZED)

    def _decode(self, name: str, decoder: Decoder, limits: Limits | None) -> Stage:
        stage = Stage(name, limits)
        for image in self._images.tolist():
            ours, reference = self._decoded(image, decoder), self._pillow(image)
            stage.add(np.asarray(ours), np.asarray(reference), self._label(image))
        return stage

    def _crop(self, interpolation: str, decode_mode: DecodeMode) -> Stage:
        """Starts from what DALI decodes, so that the resize alone differs."""
        transform = TrainTransform(
            self._size_px, interpolation=interpolation, decode_mode=decode_mode
        )
        stage = Stage(f"crop + resize + flip, {interpolation}, {decode_mode} decode", RESIZED)
        for spec, row, ours in self._train_rows(transform):
            image = int(spec.indices[row])
            reference = self._cropped(self._decoded(image), transform, spec, row)
            stage.add(ours, np.asarray(reference), self._label(image))
        return stage

    def _train(self) -> Stage:
        stage = Stage(f"training transform, {POLICY_NAME}", None)
        for ours, reference, label in self.train_pairs():
            stage.add(ours, reference, label)
        return stage

    def train_pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
        """Yield training images, Pillow's from the same files and draws, and what was drawn.

        The images are uint8 [size_px, size_px, 3].
        """
        transform = TrainTransform(self._size_px, randaugment=POLICY)
        for spec, row, ours in self._train_rows(transform):
            image = int(spec.indices[row])
            reference = self._cropped(self._pillow(image), transform, spec, row)
            numbers = uniforms(
                0, spec.epoch, Stream.RANDAUGMENT, spec.positions, POLICY.num_uniforms
            )
            draws = POLICY.draw(numbers)
            label = self._label(image)
            for layer in np.flatnonzero(draws.operation[row] >= 0):
                name = OPERATIONS[draws.operation[row, layer]]
                magnitude, negate = draws.magnitude[row, layer], draws.negate[row, layer]
                reference = apply_operation(
                    reference, name, magnitude, negate, POLICY.increasing, FILL
                )
                label += f", {name} {magnitude:.1f}"
            yield ours, np.asarray(reference), label

    def _eval(
        self, name: str, decode_image: Callable[[int], Image.Image], limits: Limits | None
    ) -> Stage:
        geometry = EvalGeometry(self._size_px, CROP_RATIO)
        stage = Stage(f"{name}, {self._size_px}/{CROP_RATIO} bicubic", limits)
        samples = EvalSamples(self._index, EvalLayout(len(self._index), BATCH_SIZE), geometry)
        loader = eval_loader(samples, *self._loader_parts, "bicubic")
        for spec, row, ours in self._rows(loader, self._specs(num_epochs=1)):
            image = int(spec.indices[row])
            reference = eval_transform(decode_image(image), geometry, "bicubic")
            stage.add(ours, np.asarray(reference), self._label(image))
        return stage

    def _operation(self, name: str, interpolation: str, limits: Limits | None) -> Stage:
        suffix = ", bicubic in Pillow" if interpolation == "bicubic" else ""
        stage = Stage(name + suffix, limits)
        magnitudes = (10.0,) if name in WITHOUT_MAGNITUDE else MAGNITUDES
        directions = (False,) if name in WITHOUT_DIRECTION else (False, True)
        for magnitude in magnitudes:
            for negate in directions:
                sign = "-" if negate else "+" if len(directions) == 2 else ""
                outputs = self._operations.apply(
                    self._small_images, name, magnitude, negate, POLICY.increasing
                )
                for image, before, ours in zip(
                    self._images.tolist(), self._small_images, outputs, strict=True
                ):
                    reference = apply_operation(
                        before, name, magnitude, negate, POLICY.increasing, FILL, interpolation
                    )
                    label = f"{self._label(image)}, {sign}{magnitude}"
                    stage.add(ours, np.asarray(reference), label)
        return stage

    @cached_property
    def _operations(self) -> Operations:
        return Operations(self._size_px, self._device_id, FILL)

    @cached_property
    def _small_images(self) -> list[Image.Image]:
        """What the operations are compared on."""
        geometry = EvalGeometry(self._size_px, CROP_RATIO)
        return [eval_transform(self._pillow(i), geometry, "bicubic") for i in self._images.tolist()]

    def _train_rows(self, transform: TrainTransform) -> Iterator[tuple[BatchSpec, int, np.ndarray]]:
        samples = TrainSamples(self._index, BatchLayout(BATCH_SIZE, BATCH_SIZE), transform)
        loader = train_loader(samples, *self._loader_parts, fill=FILL)
        yield from self._rows(loader, self._specs(NUM_EPOCHS))

    def _specs(self, num_epochs: int) -> list[BatchSpec]:
        return [
            BatchSpec(images, len(images), epoch, range(start, start + len(images)))
            for epoch in range(num_epochs)
            for start in range(0, len(self._images), BATCH_SIZE)
            for images in [self._images[start : start + BATCH_SIZE]]
        ]

    def _rows(
        self, loader: Loader, specs: Iterable[BatchSpec]
    ) -> Iterator[tuple[BatchSpec, int, np.ndarray]]:
        """Yield the specification, the row and the output uint8 [H, W, 3] of each sample."""
        for spec, batch in zip(specs, loader.batches(specs), strict=True):
            for row, image in enumerate(batch.images.cpu().numpy()):
                yield spec, row, image

    def _cropped(
        self, image: Image.Image, transform: TrainTransform, spec: BatchSpec, row: int
    ) -> Image.Image:
        # In this mode the inputs hold the window in whole pixels.
        inputs = replace(transform, decode_mode="roi", randaugment=None).graph_inputs(
            lambda stream, width: uniforms(0, spec.epoch, stream, spec.positions, width),
            self._index.widths[spec.indices],
            self._index.heights[spec.indices],
        )
        (top, left), (height, width) = inputs["anchor"][row], inputs["shape"][row]
        codes = {code: name for name, code in INTERPOLATIONS.items()}
        return crop_resize_flip(
            image,
            (left, top, left + width, top + height),
            transform.size_px,
            codes[int(inputs["interpolation"][row])],
            flip=inputs["start"][row, 1] > inputs["end"][row, 1],
        )

    def _label(self, image: int) -> str:
        return self._index.store.name(image)

    def _pillow(self, image: int) -> Image.Image:
        with self._index.open(image) as file:
            return Image.open(file).convert("RGB")

    def _decoded(self, image: int, decoder: Decoder = "host") -> Image.Image:
        """What DALI decodes for this device."""
        pipeline = self._decoders.get(decoder)
        pipeline = self._decoders[decoder] = pipeline or _decode_graph(
            Decoding(self._device, decoder),
            self._index.image_source,
            batch_size=1,
            prefetch_queue_depth=1,
            **self._options,
        )
        try:
            (output,) = pipeline.run(**self._bad_images.conversions.image_inputs(image))
        except RuntimeError as error:
            del self._decoders[decoder]  # DALI drops a pipeline that failed
            # Raises unless Pillow converts it.
            self._bad_images.find(np.array([image]), error, self._device_id)
            return self._decoded(image, decoder)
        return Image.fromarray(np.asarray(output.as_cpu().at(0)))
