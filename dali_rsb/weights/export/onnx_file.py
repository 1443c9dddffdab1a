"""`--to onnx`: an ONNX graph with a free batch dimension, checked in onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from dali_rsb.errors import UserError
from dali_rsb.weights.export.config_json import metadata
from dali_rsb.weights.export.subject import Subject
from dali_rsb.weights.export.torch_export_file import exported_program

INPUT, OUTPUT = "images", "logits"
# A protocol buffer, and so a model in one file, is smaller than this.
_MAX_BYTES = 2**31


def write(subject: Subject, path: Path, with_normalisation: bool) -> None:
    """Write the model in one file; its description is in the model's metadata.

    Raises:
        UserError: PyTorch knows no ONNX for the model, or it is too large for one file.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                exported_program(subject, with_normalisation),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(
            f"PyTorch cannot export {subject.weights.architecture} to ONNX "
            f"({str(error).splitlines()[0][:80]}); use --to torch-export"
        ) from error
    assert program is not None
    model = program.model_proto
    for key, value in metadata(subject).items():
        model.metadata_props.add(key=key, value=value)
    if model.ByteSize() >= _MAX_BYTES:
        raise UserError("the model is larger than 2 GiB, one ONNX file's limit; use another --to")
    path.write_bytes(model.SerializeToString())


def reload(path: Path) -> Callable[[Tensor], Tensor]:
    """A file that was written, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints of its progress and warns of its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
