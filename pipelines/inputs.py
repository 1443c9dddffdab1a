"""How a DALI graph declares the batches that the host feeds it beside the encoded images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode


@dataclass(frozen=True)
class InputSpec:
    """One external input: fed under `name` as an array [batch, ...] with `ndim` axes per sample."""

    name: str
    dtype: types.DALIDataType
    ndim: int


def external_inputs(specs: Iterable[InputSpec]) -> dict[str, DataNode]:
    """Return a CPU external source for each spec, by name. To be called while building a graph."""
    return {
        spec.name: fn.external_source(
            name=spec.name, batch=True, dtype=spec.dtype, ndim=spec.ndim, device="cpu"
        )
        for spec in specs
    }
