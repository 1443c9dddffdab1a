"""Whether the loader of one checkout is as fast as that of another, by turns on the same files.

    git worktree add OLD before-sample-safety
    python -m benchmarks.two_checkouts OLD NEW DATA [--rounds 9] [--output FILE]

DATA is a folder of class folders, such as `benchmarks.imagenet_like` writes. In each round both
load it, in an order that changes, each in a process of its own: one epoch to warm up, in which the
index is opened and all files are read, then the timed ones. What counts is the median over the
rounds of NEW's share of OLD's images a second. A machine that does other work at the same time
gives no result: the spread of the rounds says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import new_report, report_progress, write_json
from dali_rsb.errors import UserError, run_command

# Runs inside of a checkout, which need not hold this file.
_CHILD = """
import json, resource, sys, time
from pathlib import Path
from dali_rsb import DaliLoader
data, cache, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
epochs = options.pop("epochs")
loader = DaliLoader(data, train=True, device="cpu", cache_dir=cache, **options)
def cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
images = 0
for epoch in range(1 + epochs):
    if epoch == 1:
        start_s, start_cpu_s = time.perf_counter(), cpu_s()
    for batch, _ in loader:
        images += len(batch) * (epoch > 0)
seconds, cpu_seconds = time.perf_counter() - start_s, cpu_s() - start_cpu_s
print(json.dumps({"img_per_s": images / seconds, "cpu_ms_per_image": 1e3 * cpu_seconds / images}))
"""


def measure(checkout: Path, cache: Path, data: Path, options: dict[str, Any]) -> dict[str, float]:
    """Images a second of a checkout's loader, and CPU time for each in milliseconds."""
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, str(data), str(cache)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [*command, json.dumps(options)],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"the loader of {checkout} failed ({last}): give a checkout that loads")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(
    old: Path, new: Path, data: Path, options: dict[str, Any], num_rounds: int
) -> dict[str, Any]:
    """All measurements of both by round, and the medians of NEW's shares of OLD."""
    checkouts = {"old": old.absolute(), "new": new.absolute()}
    # Formats of stored indices differ: each has its own, built before the first round.
    caches = {name: data.absolute().parent / f"index_{name}" for name in checkouts}
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(num_rounds):
        found = {}
        for name in list(checkouts)[:: 1 if number % 2 else -1]:
            found[name] = measure(checkouts[name], caches[name], data.absolute(), options)
        rounds.append(found)
        report_progress(f"round {number + 1}: {_share(found, 'img_per_s'):.4f} of the speed")
    shares = {key: [_share(found, key) for found in rounds] for key in rounds[0]["old"]}
    return {
        "rounds": rounds,
        "shares": {
            key: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for key, values in shares.items()
        },
    }


def _share(found: dict[str, dict[str, float]], key: str) -> float:
    return found["new"][key] / found["old"][key]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=3, help="timed ones, of each round")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--randaugment", metavar="POLICY", help="none by default")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    options = {
        "batch_size": args.batch_size,
        "size_px": args.size,
        "randaugment": args.randaugment,
        "epochs": args.epochs,
    }
    result = new_report("two_checkouts", options | {"rounds": args.rounds})
    result |= compare(args.old, args.new, args.data, options, args.rounds)
    print(json.dumps(result["shares"], indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    run_command(main)
