"""All that a DALI pipeline is built from, in one object for each of the two; imports no DALI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.types import (
    HW_DECODER_LOAD,
    IMAGENET_FILL,
    DecodeMode,
    Decoder,
    HostResize,
    ImageSource,
    RawInput,
)


@dataclass(frozen=True)
class Decoding:
    """By whom images are decoded, and where they are then.

    Attributes:
        device: where the pipeline's operators run, as DALI names it.
        decoder: who decodes for a GPU; the host's pixels are Pillow's to the bit.
        hw_decoder_load: share of what the GPU decodes for its JPEG engine, where it has one.
    """

    device: Literal["cpu", "gpu"] = "cpu"
    decoder: Decoder = "host"
    hw_decoder_load: float = HW_DECODER_LOAD

    @property
    def is_on_gpu(self) -> bool:
        """Whether a decoder of the GPU is used."""
        return self.device == "gpu" and self.decoder == "gpu"


@dataclass(frozen=True, kw_only=True)
class PipelineArguments:
    """What both pipelines are built from.

    Attributes:
        size_px: side of the square results.
        batch_size: images of one iteration, at most.
        num_threads: CPU threads of the pipeline.
        device_id: the GPU, or None for a CPU pipeline.
        prefetch: iterations in flight at once.
        decoder, hw_decoder_load: see `Decoding`.
        source: whether the pipeline is fed file names or encoded images.
    """

    size_px: int
    batch_size: int
    num_threads: int
    device_id: int | None
    prefetch: int = 2
    decoder: Decoder = "host"
    hw_decoder_load: float = HW_DECODER_LOAD
    source: ImageSource = "path"

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """Where operators run, as DALI names it."""
        return "cpu" if self.device_id is None else "gpu"

    @property
    def decoding(self) -> Decoding:
        """By whom images are decoded."""
        return Decoding(self.device, self.decoder, self.hw_decoder_load)

    @property
    def of_dali(self) -> dict[str, Any]:
        """The part that `nvidia.dali.Pipeline` takes itself."""
        return {
            "batch_size": self.batch_size,
            "num_threads": self.num_threads,
            "device_id": self.device_id,
            "prefetch_queue_depth": self.prefetch,
        }


@dataclass(frozen=True, kw_only=True)
class TrainArguments(PipelineArguments):
    """What the training pipeline is built from.

    Attributes:
        decode_mode: which part of an image is decoded, and how often.
        randaugment_layers: operations that may be applied to one image, one after the other.
        fill: colour (R, G, B) that geometric operations bring in.
        host_resize: resizes in place of DALI's operator; for a CPU pipeline only.
        raw: how images that are stored as pixels come; "places" need a `host_resize`.
    """

    decode_mode: DecodeMode = "roi"
    randaugment_layers: int = 0
    fill: tuple[int, int, int] = IMAGENET_FILL
    host_resize: HostResize | None = None
    raw: RawInput | None = None


@dataclass(frozen=True, kw_only=True)
class EvalArguments(PipelineArguments):
    """What the evaluation pipeline is built from; `interpolation` is a key of `INTERPOLATIONS`."""

    interpolation: str = "bicubic"
