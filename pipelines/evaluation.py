"""The evaluation graph: read, decode, then resize and centre crop in one operator."""

from __future__ import annotations

from nvidia.dali import Pipeline, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipelines.decoding import INTERPOLATIONS, decode, read_files, resize_window
from pipelines.inputs import InputSpec, external_inputs

# `start`, `end`: float32 (y, x), the part of the source image that the centre crop keeps.
EVAL_INPUTS = (
    InputSpec("path", types.UINT8, 1),
    InputSpec("start", types.FLOAT, 1),
    InputSpec("end", types.FLOAT, 1),
)


@pipeline_def
def _eval_graph(size_px: int, device: str, hw_decoder_load: float, interpolation: str) -> DataNode:
    inputs = external_inputs(EVAL_INPUTS)
    images = decode(read_files(inputs["path"]), device, hw_decoder_load)
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
) -> Pipeline:
    """Build the evaluation graph; its output is uint8 [batch_size, size_px, size_px, 3].

    Args:
        device_id: the GPU, or None for the CPU graph.
        prefetch: batches that may be under way at once.
        interpolation: "bilinear" or "bicubic".
    """
    return _eval_graph(
        size_px,
        "cpu" if device_id is None else "gpu",
        hw_decoder_load,
        interpolation,
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
    )
