"""How a DALI pipeline declares what the host feeds it: encoded images and numbers beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import do_not_convert

from pipelines.types import ImageSource


@dataclass(frozen=True)
class InputSpec:
    """One external input: fed under `name` as an array [batch, ...] with `ndim` axes per sample.

    With `no_copy` the pipeline reads the host's arrays themselves: they must stay as they are until
    the batch's output has been taken.
    """

    name: str
    dtype: types.DALIDataType
    ndim: int
    no_copy: bool = False


@do_not_convert
def image_input(source: ImageSource) -> InputSpec:
    """The input that images come by, uint8 [num_bytes] each.

    Bytes are not copied: a shard is a memory map, and where a page has to come from the disk it is
    a decoding thread that waits for it, not the one that feeds the pipeline.
    """
    return InputSpec(source, types.UINT8, 1, no_copy=source == "encoded")


@do_not_convert
def size_input() -> InputSpec:
    """The input `size`, int32 (height, width, 3): what the header of each image must state.

    Crop windows are drawn for that size; see `pipelines.decoding.decode`.
    """
    return InputSpec("size", types.INT32, 1)


@do_not_convert
def external_inputs(specs: Iterable[InputSpec]) -> dict[str, DataNode]:
    """Return a CPU external source for each spec, by name; for a pipeline definition."""
    return {
        spec.name: fn.external_source(
            name=spec.name,
            batch=True,
            dtype=spec.dtype,
            ndim=spec.ndim,
            device="cpu",
            no_copy=spec.no_copy,
        )
        for spec in specs
    }
