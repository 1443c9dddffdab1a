"""What a run says of itself at its end."""

from pathlib import Path

import pytest

from dali_rsb.training.messages import best_lines

BEST = Path("runs/photos/best.pt")


@pytest.mark.parametrize(
    ("last", "lines"),
    [
        (None, ["best top-1 37.10 %: runs/photos/best.pt"]),
        ((54.8, None), ["best top-1 37.10 %: runs/photos/best.pt"]),
        ((38.0, 37.1), ["best EMA top-1 37.10 %: runs/photos/best.pt"]),
        (
            (54.84, 35.48),
            [
                "best EMA top-1 37.10 %: runs/photos/best.pt",
                "without the EMA last.pt has 54.84 %: ema.warmup=timm suits so short a run",
            ],
        ),
    ],
)
def test_the_best_line_says_whose_accuracy_it_is(last, lines):
    assert best_lines(37.1, BEST, last) == lines
    assert max(map(len, lines)) <= 80
