"""Faults put in one by one, each in a child that runs tests until one fails."""

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path

import pytest
from mutation import children, imports
from mutation.choosing import Chosen, Tests
from mutation.plugin import Forking, Ordered
from mutation.swapping import Functions, functions_of, swap

QUIET = ("-q", "--no-header", "-p", "no:cacheprovider", "--tb=no")
IMPORT_AGAIN = 98  # the code of a child in which the fault's file must be imported again
USUAL_S = 10  # where a test was not recorded


class Trials:
    """The faults that have no result yet, and the results as they come.

    Args:
        faults: those to try.
        tests: what was recorded.
        options: of the command line.
    """

    def __init__(self, faults: list[Chosen], tests: Tests, options: argparse.Namespace) -> None:
        self._tests, self._results, self._limit_s = tests, options.results, options.limit_s
        self._jobs = options.jobs
        self._asked = [f for f in faults if any(part in f.name for part in options.only)]
        self._progress = os.dup(1)
        self._child: children.Child | None = None

    def try_in_one_session(self, folder: Path) -> int:
        """Collect the tests once, and fork from there, with the fault in the living functions.

        Faults outside of functions are left.
        """
        imports.install()
        files = {name.partition("::")[0] for fault in self._left() for name in self._names(fault)}
        forking = Forking(self._fork)
        arguments = [*sorted(files), *QUIET, "-x", f"--basetemp={folder}/pytest"]
        code = int(pytest.main(arguments, plugins=[forking]))
        if self._child is not None:  # this is one
            self._end(code, forking.failed)
        return code

    def try_each_anew(self) -> None:
        """Try what is left with everything imported again."""
        for chosen in self._left():
            names = self._names(chosen)

            def task(folder: Path, chosen: Chosen = chosen, names: dict = names) -> int:
                os.environ["MUTATION_FAULT"] = chosen.name
                imports.install()
                files = _begin_server(names)
                ordered = Ordered(names)
                arguments = [*files, *QUIET, "-x", f"--basetemp={folder}/pytest"]
                code = int(pytest.main(arguments, plugins=[ordered]))
                _failed(folder).write_text(ordered.failed)
                return code

            self._save(chosen, names, children.run(task, _limit_s(names), self._log))

    @property
    def _log(self) -> Path:
        return self._results.with_suffix(".log")

    def _left(self) -> list[Chosen]:
        rows = self._results.read_text().splitlines() if self._results.exists() else []
        done = {json.loads(row)["name"] for row in rows}
        return [fault for fault in self._asked if fault.name not in done]

    def _names(self, chosen: Chosen) -> dict[str, float]:
        names = self._tests.for_fault(chosen, self._limit_s)
        return {name: self._tests.seconds.get(name, USUAL_S) for name in names}

    def _fork(self, config: pytest.Config) -> dict[str, float] | None:
        functions = functions_of(imports.ROOT)
        gc.freeze()  # what children share stays shared
        running: list[tuple[Chosen, dict[str, float], children.Child]] = []
        for chosen in [*self._left(), *(None,) * self._jobs]:
            while len(running) >= self._jobs or (chosen is None and running):
                time.sleep(0.05)
                for one in running[:]:
                    if one[2].poll(_limit_s(one[1])):
                        running.remove(one)
                        self._save(*one)
            if chosen is None:
                continue
            names = self._names(chosen)
            child = children.Child(self._log)
            if child.is_here:
                self._child = child
                self._begin(chosen, config, functions)
                _begin_server(names)
                return names
            running.append((chosen, names, child))
        return None

    def _begin(self, chosen: Chosen, config: pytest.Config, functions: Functions) -> None:
        assert self._child is not None
        os.environ["MUTATION_FAULT"] = chosen.name
        factory = config._tmp_path_factory
        factory._given_basetemp, factory._basetemp = self._child.folder / "pytest", None
        name = chosen.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        # What is not imported yet gets the fault when it is.
        if name in sys.modules and not swap(chosen.file, functions):
            self._child.end(IMPORT_AGAIN)

    def _end(self, code: int, failed: str) -> None:
        assert self._child is not None
        _failed(self._child.folder).write_text(failed)
        self._child.end(code)

    def _save(self, chosen: Chosen, names: dict[str, float], child: children.Child) -> None:
        code, noted = child.code, _failed(child.folder)
        by, _, why = (noted.read_text() if noted.exists() else "").partition("\n")
        child.forget()
        if code == IMPORT_AGAIN:
            return
        fault = chosen.fault
        row = {
            "name": chosen.name,
            "line": fault.line,
            "operator": fault.operator,
            "before": fault.before,
            "after": fault.after,
            "status": "survived" if code in (0, 5) else "hangs" if code is None else "killed",
            "code": code,
            "by": by,
            "why": why,
            "tests": len(names),
            "seconds": round(child.taken_s, 1),
        }
        with self._results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        left, now = len(self._left()), time.strftime("%H:%M:%S")
        line = f"[{now}] {left} left; {row['status']} in {child.taken_s:.0f} s: {chosen.name}\n"
        os.write(self._progress, line.encode())


def _begin_server(names: dict[str, float]) -> list[str]:
    """Begin the tests' server if they need it; returns their modules."""
    files = list(dict.fromkeys(name.partition("::")[0] for name in names))
    if any(children.SERVED.search((imports.ROOT / file).read_text()) for file in files):
        children.begin_server()
    return files


def _failed(folder: Path) -> Path:
    """Where a child notes the test that failed."""
    return folder / "failed.txt"


def _limit_s(names: dict[str, float]) -> float:
    return 120 + 4 * sum(names.values())
