"""The evaluation graph: read, decode, then resize and centre crop in one operator."""

from __future__ import annotations

from nvidia.dali import Pipeline, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipelines.decoding import INTERPOLATIONS, decode, read_images, resize_window
from pipelines.inputs import ImageSource, InputSpec, external_inputs, image_input, size_input


def eval_inputs(source: ImageSource = "path") -> tuple[InputSpec, ...]:
    """Inputs of the evaluation graph, one row a sample.

    `path` or `encoded`: file name or encoded image, uint8. `size`: int32 (height, width, 3) of the
    source image. `start`, `end`: float32 (y, x), the part of it that the centre crop keeps.
    """
    return (
        image_input(source),
        size_input(),
        InputSpec("start", types.FLOAT, 1),
        InputSpec("end", types.FLOAT, 1),
    )


@pipeline_def
def _eval_graph(
    size_px: int, device: str, hw_decoder_load: float, interpolation: str, source: ImageSource
) -> DataNode:
    inputs = external_inputs(eval_inputs(source))
    images = decode(read_images(inputs), inputs["size"], device, hw_decoder_load)
    return resize_window(
        images, size_px, inputs["start"], inputs["end"], INTERPOLATIONS[interpolation]
    )


def eval_pipeline(
    *,
    size_px: int,
    batch_size: int,
    num_threads: int,
    device_id: int | None,
    prefetch: int = 2,
    interpolation: str = "bicubic",
    hw_decoder_load: float = 0.65,
    source: ImageSource = "path",
) -> Pipeline:
    """Build the evaluation graph; its output is uint8 [batch_size, size_px, size_px, 3].

    Args:
        device_id: the GPU, or None for the CPU graph.
        prefetch: batches that may be under way at once.
        interpolation: "bilinear" or "bicubic".
        source: whether it is fed file names or encoded images.
    """
    return _eval_graph(
        size_px,
        "cpu" if device_id is None else "gpu",
        hw_decoder_load,
        interpolation,
        source,
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
    )
