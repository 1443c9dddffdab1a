"""The JPEG engines of a GPU, asked of nvJPEG, which DALI decodes with."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from pathlib import Path

# nvjpegBackend_t and nvjpegStatus_t of nvjpeg.h.
_HARDWARE = 3
_SUCCESS = 0


def count_jpeg_engines() -> int | None:
    """JPEG engines that nvJPEG sees on the current GPU: 0 if none, None if nvJPEG cannot be asked.

    A container without the `video` capability hides the engines of a GPU that has them.
    """
    library = _load_nvjpeg()
    if library is None:
        return None
    handle = ctypes.c_void_p()
    if library.nvjpegCreateEx(_HARDWARE, None, None, 0, ctypes.byref(handle)) != _SUCCESS:
        return 0
    try:
        engines, cores = ctypes.c_uint(), ctypes.c_uint()
        status = library.nvjpegGetHardwareDecoderInfo(
            handle, ctypes.byref(engines), ctypes.byref(cores)
        )
        return engines.value if status == _SUCCESS else None
    finally:
        library.nvjpegDestroy(handle)


def _load_nvjpeg() -> ctypes.CDLL | None:
    for path in [*_installed_libraries(), "libnvjpeg.so.13", "libnvjpeg.so.12", "libnvjpeg.so"]:
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def _installed_libraries() -> Iterator[Path]:
    """libnvjpeg of the nvidia-nvjpeg packages, which DALI depends on."""
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or []) if package else []:
        yield from sorted(Path(folder).glob("nvjpeg/lib/libnvjpeg.so.*"))
        yield from sorted(Path(folder).glob("cu*/lib/libnvjpeg.so.*"))
