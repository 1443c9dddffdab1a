"""Which decoder a loader may use: what is known of nvImageCodec, and what the log says of it."""

from __future__ import annotations

from importlib import metadata
from typing import get_args

import torch

from dali_rsb.errors import UserError
from dali_rsb.loader.settings import DecodeSetting, LoaderSettings

# nvImageCodec's packages, which DALI's builds for CUDA 12 and 13 require.
_DISTRIBUTIONS = ("nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13")

# Up to this version a window of a JPEG cannot be decoded on a GPU. With subsampled chroma and the
# triangle filter both GPU decoders refuse it, and DALI falls back to the CPU behind the GPU's
# label; else it may end in a segmentation fault on H100 and B200, and in an error on A100 (issue
# 55 of NVIDIA/nvImageCodec).
_LAST_WITHOUT_WINDOWS = (0, 9)


def nvimgcodec_version() -> tuple[int, int] | None:
    """(major, minor) of the installed nvImageCodec; None if there is none."""
    for name in _DISTRIBUTIONS:
        try:
            major, minor = metadata.version(name).split(".")[:2]
            return int(major), int(minor)
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return None


def fault_of_gpu_windows(version: tuple[int, int] | None) -> str | None:
    """Why windows cannot be decoded on a GPU with this nvImageCodec; None if they can."""
    if version is None:
        return "nvImageCodec's version is not known"
    if version <= _LAST_WITHOUT_WINDOWS:
        text = ".".join(map(str, version))
        return f"nvImageCodec {text} cannot decode windows on a GPU (CPU fallback, or a crash)"
    return None


def checked_decode(decode: str) -> DecodeSetting:
    """A way to decode as a caller gives it.

    Raises:
        UserError: it is none.
    """
    choices: tuple[DecodeSetting, ...] = get_args(DecodeSetting)
    for choice in choices:
        if decode == choice:
            return choice
    raise UserError(f"decode={decode!r}: give one of {', '.join(choices)}")


def check_decode(
    decode: DecodeSetting, device: torch.device, version: tuple[int, int] | None
) -> None:
    """Raise a `UserError` for a way to decode that is known not to work.

    Args:
        version: of nvImageCodec.
    """
    if decode == "roi" and device.type == "cuda" and (fault := fault_of_gpu_windows(version)):
        raise UserError(f"data.decode=roi: {fault}; set data.decode=host, full or hybrid")


def describe_decoding(
    settings: LoaderSettings, is_chosen: bool, is_shared: bool, device: torch.device
) -> str | None:
    """How images are decoded, and why so: a line for the log; None without a GPU.

    Args:
        is_chosen: whether the configuration or tuning says it.
        is_shared: whether copies of an image in a batch share its decoding.
    """
    if device.type != "cuda":
        return None
    decode, load = settings.decode, settings.hw_decoder_load
    if is_shared:
        by = "the GPU" if settings.decoder == "gpu" else "the CPUs"
        text = f"each image once for its copies, by {by}"
    else:
        text = {
            "host": "crop windows, by the CPUs",
            "full": f"whole images, by the GPU ({load:.0%} by its JPEG engine, if it has one)",
            "hybrid": f"{load:.0%} of the images whole, by the GPU; windows of others, by the CPUs",
            "roi": "crop windows, by the GPU",
        }[decode]
    if settings.decoder == "gpu" or (decode == "hybrid" and not is_shared):
        text += "; what the GPU does not take, as PNG or progressive JPEG, by the CPUs"
    why = "" if is_chosen else "; the default, Pillow's pixels: dali-rsb tune compares the others"
    return f"decoding (data.decode={decode}): {text}{why}"
