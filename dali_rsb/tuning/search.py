"""The search for the loader's fastest settings: candidates race in rounds until the time is up.

Pure logic: the caller (`dali_rsb.tune`) gives the measurement and the clock.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from dali_rsb.loader.settings import DecodeSetting, LoaderSettings

# A setting replaces another only where it is faster in every round, and by this much in the median:
# the loader's rate varies by one or two percent from round to round on a quiet machine.
MIN_GAIN = 0.03
# After the first round, candidates this far behind the best one are out.
HOPELESS = 0.15
NUM_ROUNDS = 3
# Below this share of its CPUs a loader waits for something else.
IDLE_BELOW = 0.6
# Share of the time by which each part of the search ends. The last part compares the choice with
# the defaults once more: of many candidates one wins by luck.
_ENDS = {
    "decode": 0.4,
    "threads": 0.6,
    "pipelines": 0.7,
    "prefetch": 0.78,
    "batches_per_run": 0.87,
    "confirm": 1.0,
}


@dataclass(frozen=True)
class LoaderRate:
    """One measurement of the loader alone."""

    img_per_s: float
    cpu_ms_per_img: float


class LoaderDiedError(Exception):
    """A measurement ended its process; the message says how."""


@dataclass(frozen=True)
class Space:
    """Values to try for each setting; those with one value are left alone.

    Attributes:
        decoding: pairs of `decode` and `hw_decoder_load`, which compete: the JPEG engine decodes
            whole images.
        threads: those above the default are tried only where the default leaves CPUs idle.
    """

    decoding: Sequence[tuple[DecodeSetting, float]] = ()
    threads: Sequence[int] = ()
    prefetch: Sequence[int] = ()
    pipelines: Sequence[int] = ()
    batches_per_run: Sequence[int] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the settings that have several values to try."""
        values: dict[str, Sequence[object]] = {
            "threads": self.threads,
            "prefetch": self.prefetch,
            "pipelines": self.pipelines,
            "batches_per_run": self.batches_per_run,
            "decode": [mode for mode, _ in self.decoding],
            "hw_decoder_load": [load for _, load in self.decoding],
        }
        return tuple(name for name in values if len(set(values[name])) > 1)


@dataclass(frozen=True)
class Result:
    """The outcome of a search.

    Attributes:
        best: the fastest settings.
        gain: their rate over that of the defaults, 1 where these stay.
        rates: all measurements.
        ran_out_of_time: whether something was left untried.
        deaths: settings whose loader ended its process, and how.
    """

    best: LoaderSettings
    gain: float
    rates: dict[LoaderSettings, list[LoaderRate]]
    ran_out_of_time: bool
    deaths: dict[LoaderSettings, str] = field(default_factory=dict)


class Search:
    """Searches one setting after the other, starting from the defaults.

    Args:
        measure: runs the loader with some settings and returns its rate.
        clock: a monotonic clock, in seconds.
        seconds: time for the whole search.
        tell: called after each measurement with the settings, their rate, and the seconds that the
            search has taken so far.
    """

    def __init__(
        self,
        measure: Callable[[LoaderSettings], LoaderRate],
        clock: Callable[[], float],
        seconds: float,
        tell: Callable[[LoaderSettings, LoaderRate, float], None] = lambda *told: None,
    ) -> None:
        self._run_loader = measure
        self._clock = clock
        self._start_s = clock()
        self._seconds = seconds
        self._tell = tell
        self._longest_s = 0.0
        self._ran_out = False
        self._rates: dict[LoaderSettings, list[LoaderRate]] = {}
        self._deaths: dict[LoaderSettings, str] = {}

    def run(self, default: LoaderSettings, space: Space) -> Result:
        """Find the best settings; the defaults, where nothing is faster beyond doubt.

        Raises:
            LoaderDiedError: the settings to compare with ended their process.
        """
        best, _ = self._race(
            "decode",
            default,
            [replace(default, decode=d, hw_decoder_load=h) for d, h in space.decoding],
        )
        share = default.threads
        threads = [n for n in space.threads if n <= share or self._leaves_cpus_idle(best, share)]
        best, _ = self._race("threads", best, [replace(best, threads=n) for n in threads])
        side_by_side = [replace(best, pipelines=n) for n in space.pipelines if n <= best.threads]
        best, _ = self._race("pipelines", best, side_by_side)
        best, _ = self._race("prefetch", best, [replace(best, prefetch=n) for n in space.prefetch])
        several = [replace(best, batches_per_run=n) for n in space.batches_per_run]
        best, _ = self._race("batches_per_run", best, several)
        gain = 1.0
        if best != default:
            best, gain = self._race("confirm", default, [best])
        elif default not in self._rates:
            self._measure(default)
        return Result(best, gain, self._rates, self._ran_out, self._deaths)

    def _leaves_cpus_idle(self, settings: LoaderSettings, num_cpus: int) -> bool:
        """Whether threads wait, for storage or a GPU, so that more of them than CPUs may help.

        Where they do not, more of them would only take from the training process itself, or have
        the container's quota stop all of it.
        """
        if settings not in self._rates:
            self._measure(settings)
        rates = self._rates[settings]
        busy_cpus = statistics.median(r.img_per_s * r.cpu_ms_per_img / 1000 for r in rates)
        return busy_cpus < IDLE_BELOW * num_cpus

    def _race(
        self, part: str, incumbent: LoaderSettings, challengers: Iterable[LoaderSettings]
    ) -> tuple[LoaderSettings, float]:
        """Measure all in rounds; every other round goes in the opposite order.

        Returns:
            The winner, and its rate over the incumbent's.
        """
        runners = list(dict.fromkeys([incumbent, *challengers]))
        end_s = self._start_s + _ENDS[part] * self._seconds
        rounds: list[dict[LoaderSettings, LoaderRate]] = []
        while len(runners) > 1 and len(rounds) < NUM_ROUNDS:
            rates = self._round(runners if len(rounds) % 2 == 0 else runners[::-1], end_s)
            if rates is None:
                break
            if incumbent in self._deaths:
                raise LoaderDiedError(self._deaths[incumbent])
            rounds.append(rates)
            lowest = (1 - HOPELESS) * max(rate.img_per_s for rate in rates.values())
            runners = [
                one
                for one in runners
                if one in rates and (one == incumbent or rates[one].img_per_s >= lowest)
            ]
        winner, gain = incumbent, 1.0
        if len(rounds) >= 2:
            for one in runners:
                ratios = [r[one].img_per_s / r[incumbent].img_per_s for r in rounds]
                median = statistics.median(ratios)
                if min(ratios) > 1 and median >= 1 + MIN_GAIN and median > gain:
                    winner, gain = one, median
        return winner, gain

    def _round(
        self, runners: Sequence[LoaderSettings], end_s: float
    ) -> dict[LoaderSettings, LoaderRate] | None:
        """Measure each once, those that die aside; None where the time ends first."""
        rates = {}
        for one in runners:
            if self._clock() + self._longest_s > end_s:
                self._ran_out = True
                return None
            try:
                rates[one] = self._measure(one)
            except LoaderDiedError as death:
                self._deaths[one] = str(death)
        return rates

    def _measure(self, settings: LoaderSettings) -> LoaderRate:
        start_s = self._clock()
        rate = self._run_loader(settings)
        self._longest_s = max(self._longest_s, self._clock() - start_s)
        self._rates.setdefault(settings, []).append(rate)
        self._tell(settings, rate, self._clock() - self._start_s)
        return rate
