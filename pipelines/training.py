"""The training pipeline: read, decode, RandomResizedCrop + flip in one operator, RandAugment."""

from __future__ import annotations

from collections.abc import Mapping

from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import do_not_convert

from pipelines.arguments import TrainArguments
from pipelines.decoding import (
    decode,
    decode_hybrid,
    decode_shared,
    nothing_decoded,
    read_images,
    resize_window,
    resize_window_on_host,
)
from pipelines.inputs import InputSpec, external_inputs, image_input, size_input
from pipelines.randaugment import rand_augment, randaugment_inputs
from pipelines.types import IS_RAW, PIXELS, RAW_PLACE, DecodeMode, ImageSource, RawInput


@do_not_convert
def train_inputs(
    decode_mode: DecodeMode,
    randaugment_layers: int,
    source: ImageSource = "path",
    raw: RawInput | None = None,
) -> tuple[InputSpec, ...]:
    """Inputs of the training pipeline, one row a sample.

    `path` or `encoded`: file name or encoded image, uint8. `size`: int32 (height, width, 3) of the
    whole image. `interpolation`: a DALIInterpType as int32. `start`, `end`: the window to resize,
    float32 (y, x), swapped in x to mirror; in pixels of the decoded part. `anchor`, `shape`: the
    part to decode, int32 (y, x), in "roi" and "hybrid" mode. `is_on_gpu`: see `decode_hybrid`, in
    "hybrid" mode. `is_first`, `source`: see `decode_shared`, in "shared" mode. With `raw` also
    `is_raw`: bool, rows that are not decoded, and `raw_place`: int64 [6], where their windows lie
    (see `dali_rsb.dataset.raw.places`), or `pixels`: uint8 [height, width, 3], the windows; `size`
    is theirs then, and of the other rows these two have nothing. Then RandAugment's.
    """
    window = (InputSpec("anchor", types.INT32, 1), InputSpec("shape", types.INT32, 1))
    of_mode = {
        "roi": window,
        "full": (),
        "hybrid": (*window, InputSpec("is_on_gpu", types.BOOL, 0)),
        "shared": (InputSpec("is_first", types.BOOL, 0), InputSpec("source", types.INT32, 0)),
    }
    of_raw = {
        None: (),
        "places": (InputSpec(IS_RAW, types.BOOL, 0), InputSpec(RAW_PLACE, types.INT64, 1)),
        "pixels": (
            InputSpec(IS_RAW, types.BOOL, 0),
            InputSpec(PIXELS, types.UINT8, 3, no_copy=True),
        ),
    }
    return (
        image_input(source),
        size_input(),
        *of_mode[decode_mode],
        *of_raw[raw],
        InputSpec("start", types.FLOAT, 1),
        InputSpec("end", types.FLOAT, 1),
        InputSpec("interpolation", types.INT32, 0),
        *randaugment_inputs(randaugment_layers),
    )


@pipeline_def(enable_conditionals=True)
def _train_graph(arguments: TrainArguments) -> DataNode:
    size_px, num_layers, raw = arguments.size_px, arguments.randaugment_layers, arguments.raw
    specs = train_inputs(arguments.decode_mode, num_layers, arguments.source, raw)
    inputs = external_inputs(specs)
    images = _decoded(inputs, arguments) if raw is None else _decoded_or_raw(inputs, arguments)
    return rand_augment(
        _resized(images, inputs, arguments),
        inputs,
        num_layers=num_layers,
        size_px=(size_px, size_px),
        fill=arguments.fill,
        device=arguments.device,
    )


def _decoded_or_raw(inputs: Mapping[str, DataNode], arguments: TrainArguments) -> DataNode:
    """The images of all rows; of those whose windows the resize reads, nothing."""
    if arguments.decode_mode == "shared":
        # Not below a condition: rows take one another's images.
        images = _decoded(inputs, arguments)
        if inputs[IS_RAW]:  # DALI knows no conditional expressions
            images = _raw(inputs, arguments)
    elif inputs[IS_RAW]:
        images = _raw(inputs, arguments)
    else:
        images = _decoded(inputs, arguments)
    return images


@do_not_convert
def _raw(inputs: Mapping[str, DataNode], arguments: TrainArguments) -> DataNode:
    if arguments.raw == "places":
        return nothing_decoded(arguments.device)
    pixels = fn.reshape(inputs[PIXELS], layout="HWC")
    return pixels.gpu() if arguments.device == "gpu" else pixels


def _decoded(inputs: Mapping[str, DataNode], arguments: TrainArguments) -> DataNode:
    decode_mode, source = arguments.decode_mode, arguments.source
    size, decoding = inputs["size"], arguments.decoding
    if decode_mode == "shared":
        sharing = (inputs["is_first"], inputs["source"])
        are_paths = source == "path"
        images = decode_shared(inputs[source], size, decoding, *sharing, are_paths=are_paths)
    elif decode_mode == "full":
        images = decode(read_images(inputs), size, decoding)
    else:
        part = (inputs["anchor"], inputs["shape"])
        if decode_mode == "hybrid":
            rows = inputs["is_on_gpu"]
            images = decode_hybrid(read_images(inputs), size, decoding, part, rows)
        else:
            images = decode(read_images(inputs), size, decoding, part)
    return images


@do_not_convert
def _resized(
    images: DataNode, inputs: Mapping[str, DataNode], arguments: TrainArguments
) -> DataNode:
    window = (inputs["start"], inputs["end"])
    if arguments.host_resize is not None:
        places = [inputs[RAW_PLACE]] if arguments.raw == "places" else []
        return resize_window_on_host(
            images, *window, inputs["interpolation"], arguments.host_resize, *places
        )
    interpolation = fn.reinterpret(inputs["interpolation"], dtype=types.INTERP_TYPE)
    return resize_window(images, arguments.size_px, *window, interpolation)


def train_pipeline(arguments: TrainArguments) -> Pipeline:
    """Build the training pipeline; its output is uint8 [batch_size, size_px, size_px, 3]."""
    # Without decisions DALI need not rewrite the functions, which takes a second of a CPU.
    decides = arguments.randaugment_layers > 0 or arguments.decode_mode in ("hybrid", "shared")
    decides |= arguments.raw is not None
    return _train_graph(arguments, enable_conditionals=decides, **arguments.of_dali)
