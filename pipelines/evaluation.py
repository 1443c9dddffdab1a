"""The evaluation pipeline: read, decode, then resize and centre crop in one operator."""

from __future__ import annotations

from nvidia.dali import Pipeline, pipeline_def, types
from nvidia.dali.data_node import DataNode

from pipelines.arguments import EvalArguments
from pipelines.decoding import decode, read_images, resize_window
from pipelines.inputs import InputSpec, external_inputs, image_input, size_input
from pipelines.types import INTERPOLATIONS, ImageSource


def eval_inputs(source: ImageSource = "path") -> tuple[InputSpec, ...]:
    """Inputs of the evaluation pipeline, one row a sample.

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
def _eval_graph(arguments: EvalArguments) -> DataNode:
    inputs = external_inputs(eval_inputs(arguments.source))
    images = decode(read_images(inputs), inputs["size"], arguments.decoding)
    interpolation = types.DALIInterpType(INTERPOLATIONS[arguments.interpolation])
    return resize_window(images, arguments.size_px, inputs["start"], inputs["end"], interpolation)


def eval_pipeline(arguments: EvalArguments) -> Pipeline:
    """Build the evaluation pipeline; its output is uint8 [batch_size, size_px, size_px, 3]."""
    return _eval_graph(arguments, **arguments.of_dali)
