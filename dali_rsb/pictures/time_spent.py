"""Where the time of a run went, by its own records."""

from __future__ import annotations

from dataclasses import dataclass

from dali_rsb.pictures.run_history import RunHistory

# The parts, as attributes of `TimeSpent`, and what a reader calls them.
PARTS = {
    "training_s": "training",
    "waiting_s": "waiting for data",
    "evaluation_s": "evaluation",
    "rest_s": "the rest",
}


@dataclass(frozen=True)
class TimeSpent:
    """Seconds.

    Attributes:
        training_s: updates, without waiting for their images.
        waiting_s: the device had nothing to do because the next batch was not there.
        evaluation_s: from an epoch's last report to its row.
        rest_s: of the time from the first report to the last what is none of these: starts,
            checkpoints that were waited for, and pauses of a run that was resumed.
    """

    training_s: float
    waiting_s: float
    evaluation_s: float
    rest_s: float

    @property
    def total_s(self) -> float:
        """All of them."""
        return self.training_s + self.waiting_s + self.evaluation_s + self.rest_s


def time_spent(run: RunHistory) -> TimeSpent | None:
    """Where the time went; None where the run has reported no update."""
    if not run.intervals or run.first_s is None or run.last_s is None:
        return None
    waiting_s = sum(one.time_s * one.data_wait_percent / 100 for one in run.intervals)
    updating_s = sum(one.time_s for one in run.intervals)
    evaluation_s = sum(one.evaluation_s or 0.0 for one in run.epochs)
    elapsed_s = run.last_s - run.first_s
    rest_s = max(0.0, elapsed_s - updating_s - evaluation_s)
    return TimeSpent(updating_s - waiting_s, waiting_s, evaluation_s, rest_s)


def duration(seconds: float) -> str:
    """A length of time in words of at most two units, such as "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    hours, minutes = divmod(round(whole / 60), 60)
    if hours == 0:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"
