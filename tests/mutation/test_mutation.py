"""The tool that puts faults in: it finds those it should, in every process, and none in texts."""

import ast
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from mutation import choosing
from mutation.choosing import choose, known_faults
from mutation.faults import faults
from mutation.known import KNOWN
from mutation.reporting import named_tests, summary

SOURCE = '''
"""A text: 1 + 1."""

def share(hits: int, count: int = 100, *, strict: bool = True) -> float:
    """Another."""
    if not count:
        return 0.0
    rows = [min(row, count) for row in range(hits)]
    logger.info("%d of %d", hits, count)
    print(hits, count, end="")
    return -sum(rows[:hits]) / count if strict and hits >= 0 else 1.0

if __name__ == "__main__":
    share(1, 2)
'''


def _sources():
    """The source with each of its faults."""
    for number in range(len(faults(ast.parse(SOURCE)))):
        tree = ast.parse(SOURCE)
        fault = faults(tree)[number]
        fault.put()
        yield fault, ast.unparse(ast.fix_missing_locations(tree))


def test_each_fault_is_one_change():
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for fault, source in _sources():
        changed = [line for line in source.splitlines() if line not in plain]
        assert len(changed) == 1, (fault, source)
        assert compile(source, "changed", "exec")


@pytest.mark.parametrize(
    "line",
    [
        "def share(hits: int, count: int=101, *, strict: bool=True) -> float:",
        "def share(hits: int, count: int=100, *, strict: bool=False) -> float:",
        "    if count:",
        "    rows = [max(row, count) for row in range(hits)]",
        "    rows = [min(count, row) for row in range(hits)]",
        "    rows = [min(row, count) for row in range(hits - 1)]",
        "    print(hits, count)",
        "    return -sum(rows[:hits - 1]) / count if strict and hits >= 0 else 1.0",
        "    return -sum(rows[:hits]) * count if strict and hits >= 0 else 1.0",
        "    return -sum(rows[:hits]) / count if strict or hits >= 0 else 1.0",
        "    return -sum(rows[:hits]) / count if strict and hits > 0 else 1.0",
        "    return 1.0 if strict and hits >= 0 else -sum(rows[:hits]) / count",
    ],
)
def test_faults_of_each_kind_are_found(line):
    assert any(line in source.splitlines() for _, source in _sources())


def test_texts_and_guards_stay():
    kept = ('"""A text', '"""Another', "logger.info('%d of %d', hits, count)", "share(1, 2)")
    assert all(text in source for _, source in _sources() for text in kept)


def test_the_choice_is_that_of_its_seed_and_touches_no_kernel():
    chosen = [fault.name for fault in choose(20, seed=3)]
    assert chosen == [fault.name for fault in choose(20, seed=3)]
    assert chosen != [fault.name for fault in choose(20, seed=4)]
    assert len(set(chosen)) == 20
    assert not any("kernels" in name for name in chosen)


def test_known_faults_fit_the_sources():
    for known, chosen in zip(KNOWN, known_faults(), strict=True):
        source = (ROOT / known.file).read_text()
        assert ast.unparse(known.tree(ROOT)) != ast.unparse(ast.parse(source)), known.what
        assert chosen.fault.statement <= known.line(ROOT)


def test_a_process_that_is_started_has_the_fault():
    program = "from dali_rsb.draws.philox import Stream; print(int(Stream.VERTICAL_FLIP))"
    name = next(fault.name for fault in known_faults() if "VERTICAL" in fault.fault.before)
    path = os.pathsep.join(map(str, (ROOT / "tests/mutation/startup", ROOT, ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": path, "MUTATION_FAULT": name}
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command, env=environment, text=True) == "1\n"


def test_shares_are_of_all_that_were_tried():
    rows = [{"status": "killed"}] * 6 + [{"status": "hangs"}]
    rows += [{"status": "survived", "verdict": v} for v in ("equivalent: speed", "", "unguarded")]
    counted = summary(rows)
    assert (counted["killed"], counted["survived"], counted["equivalent"]) == (7, 3, 1)
    assert counted["killed_percent"] == 70.0
    assert counted["killed_percent_without_equivalent"] == 77.8


def test_a_fault_is_found_again_where_its_line_has_moved(monkeypatch):
    chosen = next(fault for fault in choose(20, seed=3) if "dali_rsb/" in fault.name)
    fault, lines = chosen.fault, (ROOT / chosen.file).read_text().splitlines()
    monkeypatch.setattr(choosing, "_source_at", lambda commit, file: ["", "", *lines])
    row = {"name": chosen.name, "line": fault.line + 2, "operator": fault.operator}
    row |= {"before": fault.before, "after": fault.after}
    found = choosing.find_again(row, "a commit")
    assert (found.file, found.fault.line, found.fault.before) == (
        chosen.file,
        fault.line,
        fault.before,
    )
    assert choosing.find_again(row | {"before": "never there"}, "a commit") is None


def test_the_tests_that_a_verdict_names_try_a_fault_again():
    verdict = (
        "killed by tests/run/test_log.py::test_times[99.5-2 min], tests/run/test_meter.py (tried)"
    )
    assert named_tests({"verdict": verdict}) == (
        "tests/run/test_log.py::test_times",
        "tests/run/test_meter.py",
    )
    assert named_tests({"verdict": "equivalent: a hint"}) == ()
