"""Put faults into dali_rsb and pipelines, and count those that the tests notice.

    PYTHONPATH=.:tests python -m mutation record         # once: which test runs which statement
    PYTHONPATH=.:tests python -m mutation run --count 300 --seed 1
    PYTHONPATH=.:tests python -m mutation report
    PYTHONPATH=.:tests python -m mutation again   # survivors, by the tests that their verdicts name

`report` and `again` of another seed: with `--sample second`, kept beside the first.

All of them go on where they were stopped. They need Linux and a checkout; nothing in it is written
but `build/mutation`, and by `report` the pages beside this file.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from mutation import children, imports
from mutation.choosing import Tests, choose, find_again, known_faults
from mutation.plugin import Recorder
from mutation.reporting import (
    LEFT,
    commit_of,
    identity,
    named_tests,
    read_report,
    tell_again,
    write_report,
)
from mutation.trials import QUIET, Trials

ROOT = imports.ROOT
OUTPUT = ROOT / "build/mutation"
# Not recorded, and so not used: what is about the kernels, the benchmarks, the packaging and the
# documents; and what takes minutes for the few faults that only it would find.
LEFT_OUT = {
    *("kernels", "benchmarks", "docs", "mutation", "test_installing.py", "test_wheel.py"),
    *("test_drop_in_programs.py", "test_restarts.py", "test_watch.py", "test_tracked_runs.py"),
    *("test_survival.py", "test_stopped_runs.py", "test_damaged_images.py"),
    *("test_compiled_step.py", "test_decoders.py"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("record", "run", "report", "again"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    parser.add_argument("--limit-s", type=float, default=25, help="of tests for a fault")
    parser.add_argument(
        "--only", nargs="*", default=("",), help="faults, or folders to record: part of a name"
    )
    parser.add_argument("--sample", choices=("report", "second"), default="report")
    parser.add_argument("--results", type=Path, default=OUTPUT / "results.jsonl")
    options = parser.parse_args()
    os.chdir(ROOT)
    _prepare()
    {"record": _record, "run": _run, "report": _report, "again": _again}[options.action](options)


def _prepare() -> None:
    (OUTPUT / "lines").mkdir(parents=True, exist_ok=True)
    startup = Path(__file__).parent / "startup"
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (startup, ROOT, ROOT / "tests")))
    os.environ |= {"CI": "1", "OMP_NUM_THREADS": "1"}


def _record(options: argparse.Namespace) -> None:
    children.warm()
    done = {line.rpartition(" ")[0] for line in _lines(OUTPUT / "recorded.txt")}
    groups = [path for name in options.only if (path := ROOT / name).is_file()]
    for group in groups or sorted((ROOT / "tests").iterdir()):
        name = group.name
        is_asked = groups or any(part in name for part in options.only)
        is_test = group.is_dir() or name.startswith("test_")
        if name in LEFT_OUT | done or name.startswith("__") or not (is_asked and is_test):
            continue

        def task(folder: Path, group: Path = group) -> int:
            import pytest

            os.environ["MUTATION_LINES"] = str(OUTPUT / "lines")
            imports.install()
            children.begin_server()
            ignored = [f"--ignore-glob=*/{name}" for name in LEFT_OUT]
            arguments = [
                str(group),
                *ignored,
                *QUIET,
                "--timeout=200",
                f"--basetemp={folder}/pytest",
            ]
            return int(pytest.main(arguments, plugins=[Recorder(OUTPUT / "tests.jsonl")]))

        child = children.run(task, 3600, OUTPUT / f"record_{name}.log")
        child.forget()
        print(f"{name}: code {child.code}, {child.taken_s:.0f} s", flush=True)
        with (OUTPUT / "recorded.txt").open("a") as file:
            file.write(f"{name} {child.code}\n")


def _run(options: argparse.Namespace) -> None:
    """Try what has no result yet: first all at once, then one by one what that left."""
    children.warm()
    trials = Trials(
        [*known_faults(), *choose(options.count, options.seed)],
        Tests(OUTPUT),
        options,
    )
    children.run(trials.try_in_one_session, 24 * 3600, OUTPUT / "session.log").forget()
    trials.try_each_anew()


def _report(options: argparse.Namespace) -> None:
    newest = {row["name"]: row for row in map(json.loads, _lines(options.results))}
    chosen = choose(options.count, options.seed)
    rows = [newest[fault.name] for fault in chosen if fault.name in newest]
    known = [newest[fault.name] for fault in known_faults() if fault.name in newest]
    of_first = {row["name"] for row in rows} & _first_sample() if options.sample == "second" else ()
    rows = [row for row in rows if row["name"] not in of_first]
    about = {
        "count": options.count,
        "seed": options.seed,
        "commit": commit_of(ROOT),
        "limit_s": options.limit_s,
        "left_out": sorted(LEFT_OUT),
        "hangs": sum(row["status"] == "hangs" for row in rows),
        "coincide": len(of_first),
    }
    write_report(rows, known, about, options.sample)


def _first_sample() -> set[str]:
    """Names that the faults of the first sample have today."""
    first = read_report()
    found = (find_again(row, first["commit"]) for row in first["faults"])
    return {fault.name for fault in found if fault is not None}


def _again(options: argparse.Namespace) -> None:
    """Try what is not killed in the committed report by the tests that somebody named for it."""
    report = read_report(options.sample)
    found = {identity(row): find_again(row, report["commit"]) for row in report["faults"]}
    removed = {name for name, fault in found.items() if fault is None}
    named = {identity(row): named_tests(row) for row in report["faults"] if row["status"] in LEFT}
    faults = [
        replace(fault, tests=tests)
        for name, tests in named.items()
        if tests and (fault := found[name]) is not None
    ]
    children.warm()
    options.results = OUTPUT / "again.jsonl"
    Trials(faults, Tests(OUTPUT), options).try_each_anew()
    newest = {identity(row): row for row in map(json.loads, _lines(options.results))}
    tell_again(report, newest, removed, commit_of(ROOT), options.sample)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
