"""A CPU's kernels are compiled when a loader is built; what does without them says so."""

import logging
import sys
from types import SimpleNamespace

import torch

from dali_rsb.draws.randaugment import RandAugmentPolicy
from dali_rsb.draws.samples import TrainTransform
from dali_rsb.loader import compiling

RESIZE, AUGMENT = "dali_rsb.kernels.resize_numba", "dali_rsb.kernels.rand_augment_numba"


def test_the_kernels_that_a_transform_needs_are_compiled(monkeypatch):
    imported = []
    monkeypatch.setattr(compiling, "importlib", SimpleNamespace(import_module=imported.append))
    cpu, policy = torch.device("cpu"), RandAugmentPolicy.parse("rand-m6")
    compiling.compile_kernels(TrainTransform(32), torch.device("cuda"))
    assert imported == []
    compiling.compile_kernels(TrainTransform(32, randaugment=policy), cpu)  # by the pipeline
    assert imported == [RESIZE]
    compiling.compile_kernels(TrainTransform(32, randaugment=policy, randaugment_by="kernels"), cpu)
    assert imported[1:] == [RESIZE, AUGMENT]


def test_a_long_compilation_and_its_absence_are_said(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "dali_rsb")
    clock = SimpleNamespace(perf_counter=iter([0.0, 9.0]).__next__)
    monkeypatch.setattr(compiling, "time", clock)
    compiling.compile_kernels(TrainTransform(32), torch.device("cpu"))
    assert "were compiled for this CPU in 9 s" in caplog.text
    assert RESIZE in sys.modules
    monkeypatch.setattr(compiling, "numba_obstacle", lambda: "the package numba is not installed")
    compiling.compile_kernels(TrainTransform(32), torch.device("cpu"))
    assert "resized by PyTorch, which takes longer: the package numba is not" in caplog.text
