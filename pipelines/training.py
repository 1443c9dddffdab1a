"""The training graph: read, decode, RandomResizedCrop + flip in one operator, RandAugment."""

from __future__ import annotations

from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipelines.decoding import (
    DecodeMode,
    HostResize,
    decode,
    decode_shared,
    read_images,
    resize_window,
    resize_window_on_host,
)
from pipelines.inputs import ImageSource, InputSpec, external_inputs, image_input, size_input
from pipelines.randaugment import rand_augment, randaugment_inputs


def train_inputs(
    decode_mode: DecodeMode, randaugment_layers: int, source: ImageSource = "path"
) -> tuple[InputSpec, ...]:
    """Inputs of the training graph, one row a sample.

    `path` or `encoded`: file name or encoded image, uint8. `size`: int32 (height, width, 3) of the
    whole image. `interpolation`: a DALIInterpType as int32. `start`, `end`: the window to resize,
    float32 (y, x), swapped in x to mirror; in pixels of the decoded part. `anchor`, `shape`: the
    part to decode, int32 (y, x), in "roi" mode. `is_first`, `source`: see `decode_shared`, in
    "shared" mode. Then RandAugment's.
    """
    of_mode = {
        "roi": (InputSpec("anchor", types.INT32, 1), InputSpec("shape", types.INT32, 1)),
        "full": (),
        "shared": (InputSpec("is_first", types.BOOL, 0), InputSpec("source", types.INT32, 0)),
    }
    return (
        image_input(source),
        size_input(),
        *of_mode[decode_mode],
        InputSpec("start", types.FLOAT, 1),
        InputSpec("end", types.FLOAT, 1),
        InputSpec("interpolation", types.INT32, 0),
        *randaugment_inputs(randaugment_layers),
    )


@pipeline_def(enable_conditionals=True)
def _train_graph(
    size_px: int,
    device: str,
    decode_mode: DecodeMode,
    hw_decoder_load: float,
    randaugment_layers: int,
    fill: tuple[int, int, int],
    host_resize: HostResize | None,
    source: ImageSource,
) -> DataNode:
    inputs = external_inputs(train_inputs(decode_mode, randaugment_layers, source))
    if decode_mode == "shared":
        images = decode_shared(
            inputs[source],
            inputs["size"],
            device,
            hw_decoder_load,
            inputs["is_first"],
            inputs["source"],
            are_paths=source == "path",
        )
    else:
        part = (inputs["anchor"], inputs["shape"]) if decode_mode == "roi" else None
        images = decode(read_images(inputs), inputs["size"], device, hw_decoder_load, part)
    window = (inputs["start"], inputs["end"])
    if host_resize is not None:
        images = resize_window_on_host(images, *window, inputs["interpolation"], host_resize)
    else:
        interpolation = fn.reinterpret(inputs["interpolation"], dtype=types.INTERP_TYPE)
        images = resize_window(images, size_px, *window, interpolation)
    return rand_augment(
        images,
        inputs,
        num_layers=randaugment_layers,
        size_px=(size_px, size_px),
        fill=fill,
        device=device,
    )


def train_pipeline(
    *,
    size_px: int,
    batch_size: int,
    num_threads: int,
    device_id: int | None,
    prefetch: int = 2,
    decode_mode: DecodeMode = "roi",
    hw_decoder_load: float = 0.65,
    randaugment_layers: int = 0,
    fill: tuple[int, int, int] = (124, 116, 104),
    host_resize: HostResize | None = None,
    source: ImageSource = "path",
) -> Pipeline:
    """Build the training graph; its output is uint8 [batch_size, size_px, size_px, 3].

    Args:
        device_id: the GPU, or None for the CPU graph.
        prefetch: batches that may be under way at once.
        decode_mode: which part of an image is decoded, and how often; see `DecodeMode`.
        randaugment_layers: operations that may be applied to one image, one after the other.
        fill: colour (R, G, B) that geometric operations bring in; the default is timm's,
            255 x the ImageNet mean, rounded.
        host_resize: resizes in place of DALI's operator; for the CPU graph only.
        source: whether it is fed file names or encoded images.
    """
    return _train_graph(
        size_px,
        "cpu" if device_id is None else "gpu",
        decode_mode,
        hw_decoder_load,
        randaugment_layers,
        fill,
        host_resize,
        source,
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
    )
