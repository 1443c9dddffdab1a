"""The doctor's probes of decoders: what they decode, what the log tells, and what is made of it."""

import os
import signal
import subprocess

import pytest

from dali_rsb.checks.machine import decoders, probe

# As nvImageCodec 0.9 writes it; "process" lines of a GPU follow the format seen on a CPU.
LOG = """
\x1b[0;32m[INFO] \x1b[0m[nvjpeg-ext] nvJPEG version: 12.4.0 (CUDA version is 12.0)
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] ImageGenericDecoder::decode num_samples=3
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] 0: nvjpeg_hw_decoder process #0
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] 0: nvjpeg_hw_decoder process #2
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] 1: nvjpeg_cuda_decoder process #1
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] 2: libjpeg_turbo_decoder process #2
"""
BY_GPU = ["nvjpeg_hw_decoder"] * 3
BY_CPU = ["libjpeg_turbo_decoder"] * 3


def _answer(backends=BY_GPU, differences=(0.2, 0.3, 0.1)):
    found = {"nvjpeg": "12.4.0", "nvimgcodec": "0.9", "backends": list(backends)}
    return found | {"differences": list(differences)}


def test_the_log_tells_who_took_each_image_last():
    assert decoders.read_log(LOG) == {
        "nvjpeg": "12.4.0",
        "backends": ["nvjpeg_hw_decoder", "nvjpeg_cuda_decoder", "libjpeg_turbo_decoder"],
    }
    assert decoders.read_log("nothing") == {"nvjpeg": None, "backends": ["unknown"] * 3}


@pytest.mark.parametrize("way", ["host", "full"])
def test_the_probes_are_decoded_to_pillows_pixels_on_a_cpu(way):
    answer = probe.ask(f"{probe.DECODE}{way}")
    assert answer["differences"] == [0.0, 0.0, 0.0]
    assert answer["backends"] == BY_CPU
    finding = decoders.check_decoder(way, False, answer)
    assert finding.level == "ok"
    assert "4:2:0, 4:4:4, grey by libjpeg_turbo_decoder" in finding.message


@pytest.mark.parametrize(
    ("way", "answer", "level", "words"),
    [
        ("full", _answer(), "ok", "nvImageCodec 0.9, nvJPEG 12.4.0"),
        ("roi", _answer(BY_CPU, (0, 0, 0)), "note", "not by the GPU for 4:2:0, 4:4:4, grey"),
        ("full", _answer([*BY_GPU[:2], *BY_CPU[2:]]), "note", "not by the GPU for grey"),
        ("full", _answer(differences=(0.1, 9.0, 0.1)), "problem", "wrong pixels"),
        ("host", _answer(BY_CPU, (0, 0.01, 0)), "problem", "wrong pixels"),
        ("roi", {"error": "the process ended by SIGSEGV"}, "note", "SIGSEGV"),
        ("host", {"error": "the process ended by SIGSEGV"}, "problem", "SIGSEGV"),
    ],
)
def test_what_is_found_on_a_gpu(way, answer, level, words):
    finding = decoders.check_decoder(way, True, answer)
    assert finding.level == level
    assert words in finding.message
    assert (finding.fix is None) == (level == "ok")


def test_a_probe_that_crashes_is_an_answer(monkeypatch):
    run = subprocess.run

    def crash(command, **options):
        return run(["sh", "-c", f"kill -{signal.SIGSEGV.value} $$"], **options)

    monkeypatch.setattr(subprocess, "run", crash)
    answer = probe.ask(f"{probe.DECODE}gpu_roi")
    assert answer == {"error": "the process ended by SIGSEGV"}
    assert decoders.check_decoder("roi", True, answer).fix == "data.decode=host"


def test_only_the_decoders_probes_write_the_log(monkeypatch):
    seen = []

    def run(command, **options):
        seen.append(options["env"].get("DALI_NVIMGCODEC_LOG_LEVEL"))
        return subprocess.CompletedProcess(command, 0, '{"x": 1}\n', LOG)

    monkeypatch.delenv("DALI_NVIMGCODEC_LOG_LEVEL", raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    assert probe.ask("packages") == {"x": 1}
    assert probe.ask(f"{probe.DECODE}gpu_full")["nvjpeg"] == "12.4.0"
    assert seen == [None, "5"]
    assert "DALI_NVIMGCODEC_LOG_LEVEL" not in os.environ
