"""The CPU training pipeline cut off after each step of an image: what `loader_profile` measures.

What a step costs is the CPU time of its stage less that of the stage before, on the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import do_not_convert
from torch import Tensor

from dali_rsb.draws.randaugment import RandAugmentOperands
from dali_rsb.draws.samples import TrainSamples
from dali_rsb.loader.cpu_resize import CpuResize
from dali_rsb.loader.rand_augment import apply_operands
from pipelines import TrainArguments, train_pipeline
from pipelines.arguments import Decoding
from pipelines.decoding import decode, read_images
from pipelines.inputs import InputSpec, external_inputs
from pipelines.operands import Branch, branch_input, matrix_input, value_input
from pipelines.randaugment import rand_augment, randaugment_inputs
from pipelines.training import train_inputs
from pipelines.types import IMAGENET_FILL, HostResize, ImageSource

Inputs = Mapping[str, Any]  # by name, as `TrainSamples.prepare` gives them


@dataclass(frozen=True)
class Stage:
    """A pipeline of some steps.

    Attributes:
        build: makes the pipeline, which takes one batch at a time.
        inputs: names of its inputs.
        change: what the stage makes of the loader's own inputs.
    """

    build: Callable[[], Pipeline]
    inputs: tuple[str, ...]
    change: Callable[[Inputs], Inputs] = dict

    def fed(self, inputs: Inputs) -> Inputs:
        """What the pipeline is fed for a batch."""
        changed = self.change(inputs)
        return {name: changed[name] for name in self.inputs}


def image_stages(samples: TrainSamples, num_threads: int) -> dict[str, Stage]:
    """Stages of the training pipeline by the step that each adds, in the order of the steps.

    The decoder is split by what it is asked for: one pixel in the corner takes its set-up, one at
    the end of the window also the entropy decoding of all rows down to there, and the window the
    rest. The whole pipeline comes last.
    """
    source = samples.index.image_source
    batch = samples.layout.batch_per_device
    options: dict[str, Any] = {
        "batch_size": batch,
        "num_threads": num_threads,
        "device_id": None,
        "prefetch_queue_depth": 1,
    }
    window = (source, "anchor", "shape")
    bare = partial(_decoder, source, **options)
    # None where kernels behind the pipeline compute RandAugment.
    size_px, layers = samples.transform.size_px, samples.transform.randaugment_layers
    whole = TrainArguments(
        size_px=size_px,
        batch_size=batch,
        num_threads=num_threads,
        device_id=None,
        prefetch=1,
        source=source,
    )

    def until_resize(resize: Callable[[], HostResize]) -> Pipeline:
        return train_pipeline(replace(whole, host_resize=resize()))

    def until_end(resize: Callable[[], HostResize]) -> Pipeline:
        return train_pipeline(replace(whole, host_resize=resize(), randaugment_layers=layers))

    resize = partial(CpuResize, size_px, num_threads)
    resized = tuple(spec.name for spec in train_inputs("roi", 0, source))
    stages = {
        "iteration, feeding": Stage(partial(_fed, source, **options), (source,)),
        "reading": Stage(partial(_read, source, **options), (source,)),
        "decoder: set-up": Stage(bare, window, partial(_one_pixel, at_end=False)),
        "decoder: entropy decoding": Stage(bare, window, partial(_one_pixel, at_end=True)),
        "decoder: IDCT, upsampling, colour": Stage(bare, window),
        "header check": Stage(partial(_checked, source, **options), (*window, "size")),
        "resize: hand-over": Stage(
            partial(until_resize, partial(_without_resize, size_px)), resized
        ),
        "resize": Stage(partial(until_resize, resize), resized),
    }
    if layers:
        augmented = tuple(spec.name for spec in train_inputs("roi", layers, source))
        build = partial(until_end, resize)
        skip = partial(_skipping, num_layers=layers)
        stages["RandAugment: decisions"] = Stage(build, augmented, skip)
        stages["RandAugment: operations"] = Stage(build, augmented)
    return stages


def _image_inputs(source: ImageSource, names: Sequence[str]) -> dict[str, DataNode]:
    specs = [spec for spec in train_inputs("roi", 0, source) if spec.name in names]
    return external_inputs(specs)


@pipeline_def
def _fed(source: ImageSource) -> DataNode:
    return _image_inputs(source, (source,))[source]


@pipeline_def
def _read(source: ImageSource) -> DataNode:
    return read_images(_image_inputs(source, (source,)))


@pipeline_def
def _decoder(source: ImageSource) -> DataNode:
    """DALI's decoder as `pipelines.decoding.decode` calls it, without the checks before it."""
    inputs = _image_inputs(source, (source, "anchor", "shape"))
    return fn.decoders.image_slice(
        read_images(inputs),
        inputs["anchor"],
        inputs["shape"],
        axes=[0, 1],
        device="cpu",
        output_type=types.RGB,
        adjust_orientation=False,
    )


@pipeline_def
def _checked(source: ImageSource) -> DataNode:
    inputs = _image_inputs(source, (source, "anchor", "shape", "size"))
    window = (inputs["anchor"], inputs["shape"])
    return decode(read_images(inputs), inputs["size"], Decoding(), window)


def _one_pixel(inputs: Inputs, at_end: bool) -> Inputs:
    end = inputs["anchor"] + inputs["shape"] - 1
    anchor = end if at_end else np.zeros_like(end)
    return {**inputs, "anchor": anchor, "shape": np.ones_like(end)}


def _skipping(inputs: Inputs, num_layers: int) -> Inputs:
    changed = dict(inputs)
    for layer in range(num_layers):
        name = branch_input(layer)
        changed[name] = np.full_like(inputs[name], Branch.SKIP)
    return changed


def _without_resize(size_px: int) -> HostResize:
    """In the place of the resize: takes and gives what it does, and computes nothing."""

    @do_not_convert
    def give_any(images: Sequence[np.ndarray], *_: object) -> list[np.ndarray]:
        return list(np.empty((len(images), size_px, size_px, 3), np.uint8))

    return give_any


@dataclass(frozen=True)
class KernelBranches:
    """One layer of RandAugment by kernels on decoded images, all of which take the same branch.

    Attributes:
        operands: for each branch that the policy draws values and matrices, as they were drawn.
        frequencies: how often an image takes it, in all layers.
    """

    operands: Mapping[Branch, tuple[np.ndarray, np.ndarray]]
    frequencies: Mapping[Branch, float]

    def run(self, branch: Branch, images: Tensor) -> Tensor:
        """A batch uint8 [B, H, W, 3] that takes a branch, or SKIP; it may be overwritten."""
        batch = len(images)
        values, matrices = np.zeros(1, np.float32), np.eye(2, 3)[None]
        if branch in self.operands:
            values, matrices = self.operands[branch]
        rows = np.arange(batch) % len(values)
        operands = RandAugmentOperands(
            np.full((batch, 1), branch, np.uint8), values[rows, None], matrices[rows, None]
        )
        return apply_operands(images, operands, IMAGENET_FILL, may_overwrite=True)


def kernel_branches(drawn: Sequence[RandAugmentOperands]) -> KernelBranches:
    """The branches that the operands of some batches name."""
    codes, values, matrices = (
        np.concatenate([getattr(operands, name) for operands in drawn])
        for name in ("branch", "value", "matrix")
    )
    taken = [branch for branch in Branch if branch != Branch.SKIP and (codes == branch).any()]
    return KernelBranches(
        {branch: (values[codes == branch], matrices[codes == branch]) for branch in taken},
        {branch: float((codes == branch).sum() / len(codes)) for branch in taken},
    )


@dataclass(frozen=True)
class BranchStages:
    """One layer of RandAugment on decoded images, all of which take the same branch.

    Attributes:
        pipeline: takes "images" and the inputs of a layer.
        operands: for each branch that the policy draws values and matrices, as they were drawn.
        frequencies: how often an image takes it, in all layers.
    """

    pipeline: Pipeline
    operands: Mapping[Branch, tuple[np.ndarray, np.ndarray]]
    frequencies: Mapping[Branch, float]

    def fed(self, branch: Branch, images: list[np.ndarray]) -> Inputs:
        """What the pipeline is fed for a batch that takes a branch, or SKIP."""
        batch = len(images)
        values, matrices = np.zeros(1, np.float32), np.eye(3, dtype=np.float32)[None]
        if branch in self.operands:
            values, matrices = self.operands[branch]
        rows = np.arange(batch) % len(values)
        return {
            "images": images,
            branch_input(0): np.full(batch, branch, np.uint8),
            value_input(0): values[rows],
            matrix_input(0): matrices[rows],
        }


def branch_stages(samples: TrainSamples, num_threads: int, drawn: Sequence[Inputs]) -> BranchStages:
    """The branches of RandAugment that the inputs of some batches name.

    Args:
        drawn: inputs of the training pipeline, with layers of RandAugment.
    """
    layers = range(samples.transform.randaugment_layers)
    codes, values, matrices = (
        np.concatenate([inputs[name(layer)] for inputs in drawn for layer in layers])
        for name in (branch_input, value_input, matrix_input)
    )
    taken = [branch for branch in Branch if branch != Branch.SKIP and (codes == branch).any()]
    num_images = len(codes) / len(layers)
    build = _one_layer(
        samples.transform.size_px,
        batch_size=samples.layout.batch_per_device,
        num_threads=num_threads,
        device_id=None,
        prefetch_queue_depth=1,
    )
    return BranchStages(
        build,
        {branch: (values[codes == branch], matrices[codes == branch]) for branch in taken},
        {branch: float((codes == branch).sum() / num_images) for branch in taken},
    )


@pipeline_def(enable_conditionals=True)
def _one_layer(size_px: int) -> DataNode:
    inputs = external_inputs(randaugment_inputs(1))
    images = external_inputs([InputSpec("images", types.UINT8, 3, no_copy=True)])["images"]
    images = fn.reshape(images, layout="HWC")
    return rand_augment(
        images,
        inputs,
        num_layers=1,
        size_px=(size_px, size_px),
        fill=IMAGENET_FILL,
        device="cpu",
    )
