"""Whether the loader of one checkout is as fast as that of another, by turns on the same files.

    git worktree add OLD before-sample-safety
    python -m benchmarks.two_checkouts OLD NEW DATA [--rounds 40] [--output FILE]

DATA is a folder of class folders, such as `benchmarks.imagenet_like` writes. Both load it, each in
a process of its own that stays: one epoch to warm up, in which the index is opened and all files
are read, and then an epoch each in every round, in an order that changes. What counts is the median
over the rounds of NEW's share of OLD's images a second, with an interval that holds it with 95 %
(bootstrap): where the machine is noisy, it says how little the rounds can tell.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import new_report, report_progress, write_json
from dali_rsb.errors import UserError, run_command

# Runs inside of a checkout, which need not hold this file. An epoch for each line that it is given.
_CHILD = """
import json, resource, sys, time
from pathlib import Path
from dali_rsb import DaliLoader
data, cache, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
loader = DaliLoader(data, train=True, device="cpu", cache_dir=cache, **options)
def cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
def epoch():
    start_s, start_cpu_s = time.perf_counter(), cpu_s()
    images = sum(len(batch) for batch, _ in loader)
    seconds, cpu_seconds = time.perf_counter() - start_s, cpu_s() - start_cpu_s
    return {"img_per_s": images / seconds, "cpu_ms_per_image": 1e3 * cpu_seconds / images}
epoch()
print("{}", flush=True)
for _ in sys.stdin:
    print(json.dumps(epoch()), flush=True)
"""


class LoadingCheckout:
    """The loader of a checkout in a process of its own, which has loaded an epoch already.

    Args:
        cache: folder of the index. Formats of stored indices differ: each checkout has its own.
        options: of `DaliLoader`.

    Raises:
        UserError: it does not load.
    """

    def __init__(self, checkout: Path, cache: Path, data: Path, options: Mapping[str, Any]) -> None:
        self._checkout = checkout
        command = [sys.executable, "-W", "ignore", "-c", _CHILD, str(data), str(cache)]
        self._process = subprocess.Popen(
            [*command, json.dumps(options)],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def epoch(self) -> dict[str, float]:
        """Load an epoch: images a second, and CPU time for each image in milliseconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, said = self._process.communicate()
            last = (said.strip() or "no message").splitlines()[-1]
            raise UserError(
                f"the loader of {self._checkout} failed ({last}): give a checkout that loads"
            )
        found: dict[str, float] = json.loads(line)
        return found


@contextlib.contextmanager
def _loading(
    old: Path, new: Path, data: Path, options: Mapping[str, Any]
) -> Iterator[dict[str, LoadingCheckout]]:
    data, loaders = data.absolute(), {}
    try:
        for name, checkout in (("old", old.absolute()), ("new", new.absolute())):
            cache = data.parent / f"index_{name}"
            loaders[name] = LoadingCheckout(checkout, cache, data, options)
        yield loaders
    finally:
        for loader in loaders.values():
            loader.close()


def compare(
    old: Path, new: Path, data: Path, options: Mapping[str, Any], num_rounds: int
) -> dict[str, Any]:
    """All measurements of both by round, and NEW's shares of OLD."""
    rounds: list[dict[str, dict[str, float]]] = []
    with _loading(old, new, data, options) as loaders:
        for number in range(num_rounds):
            found = {
                name: loaders[name].epoch() for name in list(loaders)[:: 1 if number % 2 else -1]
            }
            rounds.append(found)
            report_progress(f"round {number + 1}: {_share(found, 'img_per_s'):.4f} of the speed")
    shares = {key: [_share(found, key) for found in rounds] for key in rounds[0]["old"]}
    return {"rounds": rounds, "shares": {key: _summary(values) for key, values in shares.items()}}


def _share(found: Mapping[str, Mapping[str, float]], key: str) -> float:
    return found["new"][key] / found["old"][key]


def _summary(shares: Sequence[float]) -> dict[str, float]:
    drawn = np.random.default_rng(0).choice(shares, (4000, len(shares)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975]).tolist()
    return {
        "median": statistics.median(shares),
        "low_95": low,
        "high_95": high,
        "min": min(shares),
        "max": max(shares),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--randaugment", metavar="POLICY", help="none by default")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    options = {
        "batch_size": args.batch_size,
        "size_px": args.size,
        "randaugment": args.randaugment,
    }
    result = new_report("two_checkouts", options | {"rounds": args.rounds})
    result |= compare(args.old, args.new, args.data, options, args.rounds)
    print(json.dumps(result["shares"], indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    run_command(main)
