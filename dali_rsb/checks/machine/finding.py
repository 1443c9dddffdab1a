"""What a check finds, and the versions that are known to work together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]

# The tested stack of constraints.txt: CUDA 12, code for every card from V100 (sm_70) to B200.
TESTED_STACK = "torch==2.10.0 torchvision==0.25.0 nvidia-dali-cuda120==2.4.0"
PIP_TESTED_STACK = f"pip install {TESTED_STACK}"


@dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Attributes:
        check: what was checked, in a word or two.
        level: "ok", "note" (worth knowing) or "problem" (training will fail or be slow).
        message: one line.
        mend: the command that mends it, or that makes the best of it.
    """

    check: str
    level: Level
    message: str
    mend: str | None = None


def ok(check: str, message: str) -> Finding:
    return Finding(check, "ok", message)


def note(check: str, message: str, mend: str | None = None) -> Finding:
    return Finding(check, "note", message, mend)


def problem(check: str, message: str, mend: str) -> Finding:
    return Finding(check, "problem", message, mend)
