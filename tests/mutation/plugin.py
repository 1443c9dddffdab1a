"""What pytest does for a fault: tests in an order, with time limits; and notes while recording."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest


class Ordered:
    """Runs tests in a given order, each within several times its usual time; keeps who failed."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.order, self.failed = seconds, None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        place = {name: number for number, name in enumerate(self.order)}
        items[:] = sorted(
            (item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid]
        )
        for item in items:
            limit_s = max(30, 8 * self.order[item.nodeid])
            item.add_marker(pytest.mark.timeout(limit_s), append=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid


class Recorder:
    """Notes for each test how long it takes, how it ends, and which fixtures it shares.

    A shared fixture is made in the first test that asks for it; the statements that it runs count
    for all that do.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.began_s = output, 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        shared = sorted({_key(one) for many in fixtures for one in many if one.scope != "function"})
        self.test = {"test": item.nodeid, "lines": [_file(item.nodeid), *map(_file, shared)]}
        self.began_s, self.outcomes = time.monotonic(), []
        with _noted(item.nodeid):
            yield
        self.test["seconds"] = round(time.monotonic() - self.began_s, 3)
        self.test["outcome"] = max(self.outcomes, key=["passed", "skipped", "failed"].index)
        with self.output.open("a") as file:
            file.write(json.dumps(self.test) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            return (yield)
        with _noted(_key(fixturedef)):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.outcomes.append(report.outcome)


class _noted:  # noqa: N801 -- used like a function
    """Lets statements count for a test or fixture."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.outer = os.environ.get("MUTATION_TEST", "")
        os.environ["MUTATION_TEST"] = _file(self.name)

    def __exit__(self, *_: object) -> None:
        os.environ["MUTATION_TEST"] = self.outer


def _key(fixturedef) -> str:
    return f"fixture {fixturedef.baseid}::{fixturedef.argname}"


def _file(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()[:16]
