"""Which faults are tried, and which tests try each of them."""

import ast
import json
import random
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path, PurePath
from typing import Any

from mutation.faults import Fault, faults
from mutation.imports import ROOT
from mutation.known import KNOWN


@dataclass(frozen=True)
class Chosen:
    """A fault of a file, with the number that names it there."""

    file: str
    number: int | str
    fault: Fault
    tests: tuple[str, ...] = ()  # those that try it, whatever was recorded

    @property
    def name(self) -> str:
        return f"{self.file}:{self.number}"


def choose(count: int, seed: int) -> list[Chosen]:
    """Faults at even steps through all files laid end to end: long files have more.

    A step that falls on a file takes one of its faults at random, each at most once; where there is
    none (left), one of the next file.
    """
    files = _files()
    places = [n for n, file in enumerate(files) for _ in (ROOT / file).read_text().splitlines()]
    draws, step, taken = random.Random(seed), len(places) / count, defaultdict(set)
    start = draws.random() * step
    for number in (places[int(start + step * index)] for index in range(count)):
        for file in files[number:]:
            if left := sorted(set(range(len(_faults_of(file)))) - taken[file]):
                taken[file].add(draws.choice(left))
                break
    chosen = [
        Chosen(file, number, _faults_of(file)[number])
        for file, numbers in taken.items()
        for number in sorted(numbers)
    ]
    draws.shuffle(chosen)  # so that a part of them is a fair sample too
    return chosen


@cache
def _faults_of(file: str) -> list[Fault]:
    return faults(ast.parse((ROOT / file).read_text()))


def known_faults() -> list[Chosen]:
    """Those of `known.KNOWN`."""
    found = []
    for number, known in enumerate(KNOWN):
        line, tree = known.line(ROOT), ast.parse((ROOT / known.file).read_text())
        around = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0)
        ]
        scope = "function" if any(isinstance(n, ast.FunctionDef) for n in around) else "module"
        statement = around[-1].lineno
        texts = (known.what, known.new.strip())
        fault = Fault(line, statement, scope, "known", put=_nothing, texts=texts)
        found.append(Chosen(known.file, f"known{number}", fault, (f"tests/{known.test}",)))
    return found


def find_again(row: dict[str, Any], commit: str) -> Chosen | None:
    """A fault of a report in the sources of today; None if what it changes is no longer there.

    Args:
        row: of the report.
        commit: of the sources that the report is about.
    """
    file = row["name"].partition(":")[0]
    if not (ROOT / file).exists():
        return None
    old_line = _source_at(commit, file)[row["line"] - 1].strip()
    lines = (ROOT / file).read_text().splitlines()
    same = [
        Chosen(file, number, fault)
        for number, fault in enumerate(_faults_of(file))
        if (fault.operator, fault.before, fault.after)
        == (row["operator"], row["before"], row["after"])
        and lines[fault.line - 1].strip() == old_line
    ]
    return min(same, key=lambda one: abs(one.fault.line - row["line"]), default=None)


@cache
def _source_at(commit: str, file: str) -> list[str]:
    command = ["git", "show", f"{commit}:{file}"]
    return subprocess.check_output(command, cwd=ROOT, text=True).splitlines()


def _nothing() -> None:
    pass


def _files() -> list[str]:
    paths = [*(ROOT / "dali_rsb").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
    names = (str(path.relative_to(ROOT)) for path in paths)
    return sorted(name for name in names if not name.startswith("dali_rsb/kernels/"))


class Tests:
    """What is known of the tests from the recording: times, and the statements that each runs."""

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = {}
        self._of_line: dict[tuple[str, int], set[str]] = defaultdict(set)
        self._of_file: dict[str, set[str]] = defaultdict(set)
        read: dict[str, set[tuple[str, int]]] = {}
        recorded = folder / "tests.jsonl"
        rows = recorded.read_text().splitlines() if recorded.exists() else []
        for row in map(json.loads, rows):
            if row["outcome"] != "passed":
                continue
            self.seconds[row["test"]] = row["seconds"]
            for name in row["lines"]:
                for file, line in read.setdefault(name, _read(folder / "lines" / name)):
                    self._of_line[file, line].add(row["test"])
                    self._of_file[file].add(row["test"])

    def for_fault(self, chosen: Chosen, limit_s: float) -> list[str]:
        """The tests that run a fault's statement, those of its folder first and fast ones first.

        Then, as long as all together take less than `limit_s`, the others of the same modules: a
        result may be kept from one test to the next.
        """
        if chosen.tests:
            return list(chosen.tests)
        running = self._running(chosen) or self._of_file[chosen.file]
        modules = {test.partition("::")[0] for test in running}
        modules |= {test.partition("::")[0] for test in self.seconds if self._mirrors(chosen, test)}
        near = {module: self._near(chosen.file, module) for module in modules}
        quickest: dict[str, float] = {}
        for test in running:
            module = test.partition("::")[0]
            quickest[module] = min(self.seconds[test], quickest.get(module, inf))

        def place(test: str) -> tuple[object, ...]:
            module = test.partition("::")[0]
            other = test not in running
            return other, -near[module], quickest.get(module, 0.0), module, self.seconds[test]

        kept, used_s = [], 0.0
        of_modules = [test for test in self.seconds if test.partition("::")[0] in modules]
        for test in sorted(of_modules, key=place):
            if used_s + self.seconds[test] <= limit_s:
                kept.append(test)
                used_s += self.seconds[test]
        return kept or sorted(of_modules, key=self.seconds.__getitem__)[:1]

    def _running(self, chosen: Chosen) -> set[str]:
        fault = chosen.fault
        if fault.scope == "function":
            return self._of_line[chosen.file, fault.statement]
        tree = ast.parse((ROOT / chosen.file).read_text())
        around = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.stmt) and node.lineno == fault.statement
        ]
        if fault.scope == "default":
            lines = range(fault.statement, max(node.end_lineno or 0 for node in around) + 1)
            return set().union(*(self._of_line[chosen.file, line] for line in lines))
        names = {
            node.id
            for statement in around
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        using = [file for file in self._of_file if names & _mentions(file)]
        return self._of_file[chosen.file].union(*(self._of_file[file] for file in using))

    def _mirrors(self, chosen: Chosen, test: str) -> bool:
        return self._near(chosen.file, test.partition("::")[0]) >= 10

    @staticmethod
    def _near(file: str, module: str) -> int:
        """How much a module of tests looks like the one meant for a file."""
        room, tested = PurePath(file).parts[1:-1], PurePath(module).parts[1:-1]
        same_name = PurePath(module).stem.removeprefix("test_") == PurePath(file).stem
        return 10 * same_name + 2 * (room[:1] == tested[:1])


def _read(path: Path) -> set[tuple[str, int]]:
    if not path.exists():
        return set()
    rows = (line.rpartition(":") for line in path.read_text().splitlines())
    return {(file, int(number)) for file, _, number in rows}


_NAMES: dict[str, set[str]] = {}


def _mentions(file: str) -> set[str]:
    if file not in _NAMES:
        nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
        _NAMES[file] = {node.id for node in nodes if isinstance(node, ast.Name)}
        _NAMES[file] |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return _NAMES[file]
