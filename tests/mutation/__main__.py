"""Put faults into dali_rsb and pipelines, and count those that the tests notice.

    PYTHONPATH=.:tests python -m mutation record         # once: which test runs which statement
    PYTHONPATH=.:tests python -m mutation run --count 300 --seed 1
    PYTHONPATH=.:tests python -m mutation report

All of them go on where they were stopped. They need Linux and a checkout; nothing in it is written
but `build/mutation`, and by `report` the pages beside this file.
"""

import argparse
import json
import os
import time
from pathlib import Path

from mutation import children, imports
from mutation.choosing import Chosen, Tests, choose, known_faults
from mutation.plugin import Ordered, Recorder
from mutation.reporting import commit_of, write_report

ROOT = imports.ROOT
OUTPUT = ROOT / "build/mutation"
# Not recorded, and so not used: what is about the kernels, the benchmarks, the packaging and the
# documents; and what takes minutes for the few faults that only it would find.
LEFT_OUT = {
    *("kernels", "benchmarks", "docs", "mutation", "test_installing.py", "test_wheel.py"),
    *("test_drop_in_programs.py", "test_restarts.py", "test_watch.py", "test_tracked_runs.py"),
    *("test_survival.py", "test_damaged_images.py", "test_compiled_step.py", "test_decoders.py"),
}
QUIET = ("-q", "--no-header", "-p", "no:cacheprovider", "--tb=line")


def main() -> None:
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("record", "run", "report"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--known", action="store_true", help="run those of known.py instead")
    parser.add_argument("--limit-s", type=float, default=60, help="of tests for a fault")
    parser.add_argument("--only", default="", help="faults, or folders to record: part of a name")
    parser.add_argument("--first", nargs="*", default=(), help="folders to record first")
    parser.add_argument("--results", type=Path, default=OUTPUT / "results.jsonl")
    options = parser.parse_args()
    os.chdir(ROOT)
    _prepare()
    {"record": _record, "run": _run, "report": _report}[options.action](options)


def _prepare() -> None:
    (OUTPUT / "lines").mkdir(parents=True, exist_ok=True)
    startup = Path(__file__).parent / "startup"
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (startup, ROOT, ROOT / "tests")))
    os.environ |= {"CI": "1", "OMP_NUM_THREADS": "1"}


def _record(options: argparse.Namespace) -> None:
    children.warm()
    done = {line.rpartition(" ")[0] for line in _lines(OUTPUT / "recorded.txt")}
    groups = sorted((ROOT / "tests").iterdir(), key=lambda group: group.name not in options.first)
    for group in groups:
        name = group.name
        if name in LEFT_OUT | done or not (group.is_dir() or name.startswith("test_")):
            continue
        if name.startswith("__") or options.only not in name:
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
                "--timeout=60",
                f"--basetemp={folder}/pytest",
            ]
            return int(pytest.main(arguments, plugins=[Recorder(OUTPUT / "tests.jsonl")]))

        code, taken_s = children.run(task, 3600, OUTPUT / f"record_{name}.log")
        print(f"{name}: code {code}, {taken_s:.0f} s", flush=True)
        with (OUTPUT / "recorded.txt").open("a") as file:
            file.write(f"{name} {code}\n")


def _run(options: argparse.Namespace) -> None:
    children.warm()
    tests = Tests(OUTPUT)
    done = {row["name"] for row in map(json.loads, _lines(options.results))}
    faults = known_faults() if options.known else choose(options.count, options.seed)
    for number, chosen in enumerate(faults, start=1):
        if chosen.name in done or options.only not in chosen.name:
            continue
        row = _try(chosen, tests.for_fault(chosen, options.limit_s), tests)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        text = f"{row['status']} in {row['seconds']:.0f} s: {chosen.name} line {chosen.fault.line}"
        print(f"[{time.strftime('%H:%M:%S')}] {number}/{len(faults)} {text}", flush=True)


def _try(chosen: Chosen, names: list[str], tests: Tests) -> dict[str, object]:
    """Put a fault in and run tests until one fails."""
    noted = OUTPUT / "failed.txt"
    noted.unlink(missing_ok=True)
    files = list(dict.fromkeys(name.partition("::")[0] for name in names))

    def task(folder: Path) -> int:
        import pytest

        os.environ["MUTATION_FAULT"] = chosen.name
        imports.install()
        if any(children.SERVED.search((ROOT / file).read_text()) for file in files):
            children.begin_server()
        ordered = Ordered({name: tests.seconds[name] for name in names})
        arguments = [*files, *QUIET, "-x", f"--basetemp={folder}/pytest"]
        code = int(pytest.main(arguments, plugins=[ordered]))
        noted.write_text(ordered.failed or "")
        return code

    limit_s = 120 + 4 * sum(tests.seconds[name] for name in names)
    code, taken_s = children.run(task, limit_s, OUTPUT / "fault.log")
    fault = chosen.fault
    return {
        "name": chosen.name,
        "line": fault.line,
        "operator": fault.operator,
        "before": fault.before,
        "after": fault.after,
        "status": "survived" if code == 0 else "hangs" if code is None else "killed",
        "code": code,
        "by": noted.read_text() if noted.exists() else "",
        "tests": len(names),
        "seconds": round(taken_s, 1),
    }


def _report(options: argparse.Namespace) -> None:
    newest = {row["name"]: row for row in map(json.loads, _lines(options.results))}
    chosen = choose(options.count, options.seed)
    rows = [newest[fault.name] for fault in chosen if fault.name in newest]
    known = [newest[fault.name] for fault in known_faults() if fault.name in newest]
    about = {
        "count": options.count,
        "seed": options.seed,
        "commit": commit_of(ROOT),
        "limit_s": options.limit_s,
        "left_out": sorted(LEFT_OUT),
        "hangs": sum(row["status"] == "hangs" for row in rows),
    }
    write_report(rows, known, about)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
