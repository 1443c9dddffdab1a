"""Questions that are asked in a process of their own: what breaks there does not end the doctor.

`python -m dali_rsb.checks.machine.probe NAME` prints the answer as JSON on its last line; `ask`
runs it, and so does the same command with `--ask NAME`, which survives what breaks.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dali_rsb.checks.machine import decoders

TIMEOUT_S = 180

DECODE = "decode_"  # and a way to decode; with "gpu_" before it for the first GPU


def ask(name: str) -> dict[str, Any]:
    """The answer of a probe; where it fails, {"error": one line}."""
    command = [sys.executable, "-m", f"{__package__}.probe", name]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env=os.environ | (decoders.LOG_LEVEL if name.startswith(DECODE) else {}),
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {TIMEOUT_S} s"}
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        if result.returncode < 0:
            return {"error": f"the process ended by {_signal_name(-result.returncode)}"}
        if not lines:
            return {"error": f"the process ended with code {result.returncode}"}
        return {"error": lines[-1]}
    answer: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return answer | (decoders.read_log(result.stderr) if name.startswith(DECODE) else {})


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def packages() -> dict[str, Any]:
    """Version of each package, or {"error": ...}; of torch also what it was built for."""
    answer: dict[str, Any] = {}
    for name in ("torch", "torchvision", "triton", "timm"):
        try:
            answer[name] = {"version": importlib.import_module(name).__version__}
        except ModuleNotFoundError as error:
            missing = error.name == name
            answer[name] = {"missing": True} if missing else {"error": _line(error)}
        except Exception as error:  # whatever a broken installation raises
            answer[name] = {"error": _line(error)}
    if "version" in answer["torch"]:
        answer["torch"] |= _torch_build()
    return answer


def _torch_build() -> dict[str, Any]:
    import torch

    # get_arch_list() is empty where no GPU is seen; what it reads is there all the same.
    read_flags = getattr(torch._C, "_cuda_getArchFlags", None)
    flags = read_flags() if torch.version.cuda and read_flags else None
    available = torch.cuda.is_available()
    return {
        "cuda": torch.version.cuda,
        "arch_list": (flags or "").split(),
        "gpus": [
            [torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i)]
            for i in range(torch.cuda.device_count() if available else 0)
        ],
    }


def dali_cpu() -> dict[str, Any]:
    """Decode a JPEG in a CPU pipeline."""
    import nvidia.dali

    return {"version": nvidia.dali.__version__, "shape": _decode(None)}


def dali_gpu() -> dict[str, Any]:
    """Decode a JPEG in a pipeline on the first GPU."""
    return {"shape": _decode(0)}


def jpeg_engine() -> dict[str, Any]:
    """The JPEG engines that nvJPEG sees, and whether the driver's library for them is there."""
    import torch

    from dali_rsb.checks.machine.jpeg_engine import count_jpeg_engines

    torch.cuda.init()
    torch.zeros(1, device="cuda")  # nvJPEG needs a CUDA context
    try:
        ctypes.CDLL("libnvcuvid.so.1")
        has_library = True
    except OSError:
        has_library = False
    return {"engines": count_jpeg_engines(), "has_library": has_library}


def _decode(device_id: int | None) -> list[int]:
    """Shape of a decoded and resized image."""
    import numpy as np
    from PIL import Image

    from pipelines import EvalArguments, eval_pipeline

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.jpg"
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)
        pipeline = eval_pipeline(
            EvalArguments(size_px=32, batch_size=1, num_threads=1, device_id=device_id, prefetch=1)
        )
        pipeline.build()
        (images,) = pipeline.run(
            path=[np.frombuffer(str(path).encode(), np.uint8)],
            size=[np.array([48, 64, 3], np.int32)],
            start=[np.zeros(2, np.float32)],
            end=[np.array([48, 64], np.float32)],
        )
        return [int(size) for size in images.as_cpu().as_array().shape]


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "packages": packages,
    "dali_cpu": dali_cpu,
    "dali_gpu": dali_gpu,
    "jpeg_engine": jpeg_engine,
    **{f"{DECODE}{way}": partial(decoders.try_decoder, way, None) for way in decoders.WAYS},
    **{f"{DECODE}gpu_{way}": partial(decoders.try_decoder, way, 0) for way in decoders.WAYS},
}


def main(name: str) -> None:
    try:
        answer = PROBES[name]()
    except Exception as error:  # whatever a broken installation raises
        answer = {"error": _line(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    if sys.argv[1] == "--ask":
        print(json.dumps(ask(sys.argv[2])))
    else:
        main(sys.argv[1])
