"""What a run says of itself."""

from pathlib import Path

import pytest
import torch

from dali_rsb.training.messages import best_lines, device_memory

BEST = Path("runs/photos/best.pt")


@pytest.mark.parametrize(
    ("has_ema", "val_top1", "lines"),
    [
        (False, None, ["best top-1 37.10 %: runs/photos/best.pt"]),
        (False, 54.8, ["best top-1 37.10 %: runs/photos/best.pt"]),
        (True, None, ["best EMA top-1 37.10 %: runs/photos/best.pt"]),
        (True, 38.0, ["best EMA top-1 37.10 %: runs/photos/best.pt"]),
        (
            True,
            54.84,
            [
                "best EMA top-1 37.10 %: runs/photos/best.pt",
                "without the EMA last.pt has 54.84 %: ema.warmup=timm suits so short a run",
            ],
        ),
    ],
)
def test_the_best_line_says_whose_accuracy_it_is(has_ema, val_top1, lines):
    assert best_lines(37.1, BEST, has_ema, val_top1) == lines
    assert max(map(len, lines)) <= 80


def test_memory_is_that_of_the_gpu_in_all_programs(monkeypatch):
    free_of_total = (20 * 2**30, 80 * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: free_of_total)
    assert device_memory(torch.device("cuda")) == "; 60.0 of 80.0 GiB of GPU memory in use"
    assert device_memory(torch.device("cpu")) == ""
