"""Which decoder is used: what was chosen, what nvImageCodec can do, what the log says."""

import re

import pytest
import torch

from dali_rsb.errors import UserError
from dali_rsb.loader.decoding import (
    check_decode,
    checked_decode,
    describe_decoding,
    fault_of_gpu_windows,
    nvimgcodec_version,
)
from dali_rsb.loader.settings import LoaderSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("version", "is_refused"),
    [
        (None, True),
        ((0, 3), True),
        ((0, 8), True),
        ((0, 9), True),
        ((0, 10), False),
        ((1, 0), False),
    ],
)
def test_windows_on_a_gpu_are_refused_where_nvimgcodec_cannot_decode_them(version, is_refused):
    assert (fault_of_gpu_windows(version) is not None) == is_refused
    for decode in ("host", "full", "hybrid"):
        check_decode(decode, GPU, version)
    check_decode("roi", CPU, version)
    if is_refused:
        with pytest.raises(UserError, match="host, full or hybrid"):
            check_decode("roi", GPU, version)
    else:
        check_decode("roi", GPU, version)


def test_the_installed_version_is_known():
    version = nvimgcodec_version()
    assert version is not None
    assert version >= (0, 9)


@pytest.mark.parametrize(
    ("decode", "on_cpu", "on_gpu", "decoder"),
    [
        ("host", "roi", "roi", "host"),
        ("full", "full", "full", "gpu"),
        ("hybrid", "roi", "hybrid", "host"),
        ("roi", "roi", "roi", "gpu"),
    ],
)
def test_what_is_decoded_and_by_whom(decode, on_cpu, on_gpu, decoder):
    settings = LoaderSettings(4, decode=checked_decode(decode))
    assert settings.decode_mode(CPU) == on_cpu
    assert settings.decode_mode(GPU) == on_gpu
    assert settings.decoder == decoder


@pytest.mark.parametrize("decode", ["gpu", "auto", "", "ROI"])
def test_other_ways_are_refused_with_the_choices(decode):
    with pytest.raises(UserError, match=re.escape("give one of host, full, hybrid, roi")):
        checked_decode(decode)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("decode", ["host", "full", "hybrid", "roi"])
def test_the_log_says_how_and_why(decode, is_shared):
    settings = LoaderSettings(4, decode=decode, hw_decoder_load=0.5)
    default = describe_decoding(settings, False, is_shared, GPU)
    chosen = describe_decoding(settings, True, is_shared, GPU)
    assert default.startswith(chosen)
    assert f"data.decode={decode}" in chosen
    assert "dali-rsb tune" in default
    on_gpu = decode in ("full", "roi") or (decode == "hybrid" and not is_shared)
    assert ("what the GPU does not take" in chosen) == on_gpu
    assert ("by the GPU" in chosen.partition(";")[0]) == on_gpu
    assert describe_decoding(settings, True, is_shared, CPU) is None
