"""Every way to decode JPEGs, tried on three probes: who decodes each, and are the pixels right?

`try_decoder` runs in a process of its own (`probe.ask`): a decoder of the GPU may crash. Who took
an image stands in nvImageCodec's log alone, which is read from that process's stderr.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from dali_rsb.checks.machine.finding import Finding, note, ok, problem

Way = Literal["host", "full", "roi"]  # values of data.decode; hybrid is host and full
WAYS: tuple[Way, ...] = get_args(Way)

PROBES = ("4:2:0", "4:4:4", "grey")
SIDES = (96, 128)  # height, width
WINDOW = ((16, 24), (64, 80))  # (top, left), (height, width)

# Levels of 0..255 by which a GPU's pixels may differ from Pillow's, in the mean of an image.
MAX_DIFFERENCE = 2.0

# The log tells everything at this level; see DALI's list of environment variables.
LOG_LEVEL = {"DALI_NVIMGCODEC_LOG_LEVEL": "5"}


def try_decoder(way: Way, device_id: int | None) -> dict[str, Any]:
    """Decode the probes in one batch, as `data.decode=way` does on a device.

    Returns:
        {"differences": for each probe, the mean difference from Pillow's pixels,
        "nvimgcodec": its version}.
    """
    from nvidia.dali import pipeline_def
    from nvidia.dali.data_node import DataNode
    from PIL import Image

    from dali_rsb.loader.decoding import nvimgcodec_version
    from pipelines.arguments import Decoding
    from pipelines.decoding import decode
    from pipelines.inputs import external_inputs, image_input, size_input

    decoding = Decoding()
    if device_id is not None:
        decoding = Decoding("gpu", "host" if way == "host" else "gpu")
    anchor, shape = (np.array(pair, np.int32) for pair in WINDOW)

    @pipeline_def(
        batch_size=len(PROBES), num_threads=1, device_id=device_id, prefetch_queue_depth=1
    )
    def probe_pipeline() -> DataNode:
        from nvidia.dali import types

        inputs = external_inputs((image_input("encoded"), size_input()))
        window = None
        if way != "full":
            window = (types.Constant(anchor), types.Constant(shape))
        return decode(inputs["encoded"], inputs["size"], decoding, window)

    files = _probes()
    sizes = [np.array([*SIDES, 3], np.int32)] * len(files)
    encoded = [np.frombuffer(file, np.uint8) for file in files]
    (output,) = probe_pipeline().run(encoded=encoded, size=sizes)
    differences = []
    for index, file in enumerate(files):
        expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)
        if way != "full":
            expected = expected[anchor[0] :, anchor[1] :][: shape[0], : shape[1]]
        got = np.asarray(output.as_cpu().at(index)).astype(int)
        differences.append(float(np.abs(got - expected).mean()))
    version = nvimgcodec_version()
    return {
        "differences": differences,
        "nvimgcodec": ".".join(map(str, version)) if version else "unknown",
    }


def _probes() -> list[bytes]:
    """Three JPEGs of the same blobs: 4:2:0, 4:4:4 and grey."""
    from PIL import Image

    y, x = np.indices(SIDES)
    planes = [127 + 120 * np.sin(y / (7 + 3 * c)) * np.cos(x / (5 + 4 * c)) for c in range(3)]
    image = Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))
    files = []
    for kind, subsampling in zip(PROBES, (2, 0, 0), strict=True):
        buffer = io.BytesIO()
        if kind == "grey":
            image.convert("L").save(buffer, "JPEG")
        else:
            image.save(buffer, "JPEG", subsampling=subsampling)
        files.append(buffer.getvalue())
    return files


def read_log(log: str) -> dict[str, Any]:
    """What nvImageCodec's log tells.

    Returns:
        {"nvjpeg": version or None, "backends": name of the decoder that took each image last}.
    """
    version = re.search(r"nvJPEG version: ([\d.]+)", log)
    taken: dict[int, str] = {}
    for name, image in re.findall(r"(\w+) process #(\d+)", log):
        taken[int(image)] = name
    return {
        "nvjpeg": version[1] if version else None,
        "backends": [taken.get(index, "unknown") for index in range(len(PROBES))],
    }


def check_decoder(way: Way, on_gpu: bool, answer: dict[str, Any]) -> Finding:
    """Does this way to decode work, and who does the work?

    Args:
        answer: of `try_decoder`, with `read_log`'s.
    """
    name = f"data.decode={way}"
    if "error" in answer:
        if way == "host":
            return problem(name, f"fails: {answer['error']}", "dali-rsb doctor --json  # report it")
        return note(name, f"does not work here: {answer['error']}", "data.decode=host")
    took = _by_backend(answer["backends"])
    versions = (
        f" (nvImageCodec {answer['nvimgcodec']}, nvJPEG {answer['nvjpeg']})" if on_gpu else ""
    )
    largest = max(answer["differences"])
    text = f"{took}{versions}, off Pillow by {largest:.2f} levels"
    if largest > (0.0 if way == "host" or not on_gpu else MAX_DIFFERENCE):
        return problem(name, f"wrong pixels: {text}", "data.decode=host")
    falls_back = [
        kind
        for kind, took in zip(PROBES, answer["backends"], strict=True)
        if on_gpu and way != "host" and not took.startswith("nvjpeg")
    ]
    if falls_back:
        return note(name, f"not by the GPU for {', '.join(falls_back)}: {text}", "data.decode=host")
    return ok(name, text)


def _by_backend(backends: Sequence[str]) -> str:
    """The probes by who took them, such as "4:2:0, grey by nvjpeg_hw_decoder"."""
    kinds: dict[str, list[str]] = {}
    for kind, backend in zip(PROBES, backends, strict=True):
        kinds.setdefault(backend, []).append(kind)
    return "; ".join(f"{', '.join(of_one)} by {backend}" for backend, of_one in kinds.items())
