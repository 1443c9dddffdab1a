"""Reading and decoding, and the resize with PIL's filters: what both pipelines share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import do_not_convert

from pipelines.arguments import Decoding
from pipelines.inputs import external_inputs, image_input, size_input
from pipelines.types import HostResize, ImageSource


@do_not_convert
def read_files(paths: DataNode) -> DataNode:
    """Read whole files; `paths` are absolute file names as uint8 arrays.

    Not as memory maps: to decode from one whose file is cut short meanwhile is a bus error, and one
    whose file is overwritten may pass `_of_size` and be another image then. Reading is cheaper too,
    by 10 us of CPU for a file of 46 kB.
    """
    return fn.io.file.read(paths, dont_use_mmap=True)


@do_not_convert
def read_images(inputs: Mapping[str, DataNode]) -> DataNode:
    """The encoded images of a pipeline, whichever `image_input` it has."""
    return inputs["encoded"] if "encoded" in inputs else read_files(inputs["path"])


@do_not_convert
def _of_size(encoded: DataNode, size: DataNode) -> DataNode:
    """The same images, none of which the decoder refuses for its header; else the batch fails.

    DALI 2.4's decoder reads the headers of 32 images or more in its own thread and in those of the
    pool. If its own thread meets one that cannot be read, or a window that leaves the image, it
    raises without waiting for the pool, whose threads go on with memory that has been freed: a
    segmentation fault, sooner or later.
    `fn.peek_image_shape` reads the same headers by the same parser, and waits for all threads
    before it raises; `fn.reshape`, which copies nothing, raises where a size differs.
    """
    stated = fn.peek_image_shape(encoded, adjust_orientation=False, dtype=types.INT32)
    is_right = fn.reductions.min((stated == size) * 1.0, keep_dims=True)
    return fn.reshape(encoded, rel_shape=is_right)  # to none of its bytes for a wrong one


@do_not_convert
def decode(
    encoded: DataNode,
    size: DataNode,
    decoding: Decoding,
    window: tuple[DataNode, DataNode] | None = None,
) -> DataNode:
    """Decode to uint8 HWC RGB on the pipeline's device, as PIL's convert("RGB") does.

    Orientation tags are ignored (timm does not rotate) and chroma is upsampled with libjpeg's
    triangle filter ("fancy"), which the CPU decoder always does and the GPU decoder must be told.

    Args:
        size: int32 (height, width, 3). An image whose header cannot be read or states another size
            makes the batch fail before anything is decoded.
        decoding: by whom, and on which device the images are then.
        window: (top, left) and (height, width), int32 [2] each, inside the image, to decode only
            that part.
    """
    encoded = _of_size(encoded, size)
    options: dict[str, Any] = {
        "device": "mixed" if decoding.is_on_gpu else "cpu",
        "output_type": types.RGB,
        "adjust_orientation": False,
    }
    if decoding.is_on_gpu:
        load = decoding.hw_decoder_load
        options |= {"jpeg_fancy_upsampling": True, "hw_decoder_load": load}
    if window is None:
        decoded = fn.decoders.image(encoded, **options)
    else:
        anchor, shape = window
        decoded = fn.decoders.image_slice(encoded, anchor, shape, axes=[0, 1], **options)
    return decoded.gpu() if decoding.device == "gpu" and not decoding.is_on_gpu else decoded


def decode_hybrid(
    encoded: DataNode,
    size: DataNode,
    decoding: Decoding,
    window: tuple[DataNode, DataNode],
    is_on_gpu: DataNode,
) -> DataNode:
    """Decode the windows of some images on the host and the whole of the others on the GPU.

    The CPUs and the JPEG engine then work on one batch at the same time. To be called from a
    pipeline definition with `enable_conditionals=True`.

    Args:
        is_on_gpu: bool, for each row.
    """
    if is_on_gpu:
        decoded = decode(encoded, size, replace(decoding, decoder="gpu", hw_decoder_load=1.0))
    else:
        decoded = decode(encoded, size, replace(decoding, decoder="host"), window)
    return decoded


def decode_shared(
    images: DataNode,
    size: DataNode,
    decoding: Decoding,
    is_first: DataNode,
    source: DataNode,
    are_paths: bool = True,
) -> DataNode:
    """Decode one row for each distinct image and hand it to the rows of its copies.

    To be called from a pipeline definition with `enable_conditionals=True`.

    Args:
        images: names of files to read or, without `are_paths`, encoded images.
        size, decoding: see `decode`.
        is_first: bool, rows to decode.
        source: int32, for each row the row whose image it takes.
    """
    if is_first:
        encoded = read_files(images) if are_paths else images
        decoded = decode(encoded, size, decoding)
    else:
        decoded = nothing_decoded(decoding.device)
    return fn.permute_batch(decoded, indices=source)


@do_not_convert
def nothing_decoded(device: str) -> DataNode:
    """An image that is never looked at."""
    return types.Constant(np.zeros((1, 1, 3), np.uint8), layout="HWC", device=device)


@do_not_convert
def resize_window_on_host(
    images: DataNode,
    start: DataNode,
    end: DataNode,
    interpolation: DataNode,
    resize: HostResize,
    *places: DataNode,
) -> DataNode:
    """Resize windows by a function of the caller's; for CPU pipelines.

    Args:
        start, end: as in `resize_window`, in whole pixels.
        interpolation: a DALIInterpType for each image, as int32.
        places: the input `raw_place`, if there is one.
    """
    return fn.python_function(
        images,
        start,
        end,
        interpolation,
        *places,
        function=resize,
        batch_processing=True,
        output_layouts="HWC",
    )


@do_not_convert
def resize_window(
    images: DataNode, size_px: int, start: DataNode, end: DataNode, interpolation: Any
) -> DataNode:
    """Resize the window [start, end) of each image to a square; PIL's filters, antialiased.

    Args:
        start, end: float32 [2] as (y, x) in pixels of `images`; swapped in x they mirror.
        interpolation: a DALIInterpType or a DataNode with one for each image.
    """
    return fn.resize(
        images,
        size=[size_px, size_px],
        roi_start=start,
        roi_end=end,
        interp_type=interpolation,
        antialias=True,
    )


@pipeline_def(batch_size=1, num_threads=1, prefetch_queue_depth=1)
def _decode_graph(source: ImageSource, decoding: Decoding) -> DataNode:
    inputs = external_inputs((image_input(source), size_input()))
    return decode(read_images(inputs), inputs["size"], decoding)


def decode_check_pipeline(source: ImageSource = "path", device_id: int | None = None) -> Pipeline:
    """Build a pipeline that decodes one image at a time, to find those that fail.

    Args:
        source: whether it is fed file names or encoded images; `size` is fed beside them.
        device_id: the GPU, or None for the CPU's decoder.
    """
    decoding = Decoding() if device_id is None else Decoding("gpu", "gpu")
    return _decode_graph(source, decoding, device_id=device_id)
