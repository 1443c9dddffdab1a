"""What pytest does for a fault: tests in an order, with time limits; and notes while recording."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest


class Ordered:
    """Runs tests in a given order, each within several times its usual time; keeps who failed."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.order = seconds
        self.failed = ""  # name of the test, and in a second line why

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        names = {item: self._name_of(item.nodeid) for item in items}
        place = {name: number for number, name in enumerate(self.order)}
        asked = [(place[name], item) for item, name in names.items() if name is not None]
        items[:] = [item for _, item in sorted(asked, key=lambda pair: pair[0])]
        for item in items:
            _limit(item, self.order[names[item] or ""])

    def _name_of(self, nodeid: str) -> str | None:
        """The name that asked for a test: its own, without parameters, or its module's."""
        names = (nodeid, nodeid.partition("[")[0], nodeid.partition("::")[0])
        return next((name for name in names if name in self.order), None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid}\n{_why(report)}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid}\n{_why(report)}"


class Forking:
    """In place of running the tests that were collected, forks a child for each fault.

    Args:
        fork: makes the children, one after the other. In each of them it returns the tests to run
            with their usual seconds; None in the parent, in the end.
    """

    def __init__(self, fork: Callable[[pytest.Config], dict[str, float] | None]) -> None:
        self.fork, self.failed = fork, ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        names = self.fork(session.config)
        if names is None:
            return True
        by_name = {item.nodeid: item for item in session.items}
        session.items = [by_name[name] for name in names if name in by_name]
        for item in session.items:
            _limit(item, names[item.nodeid])
        return None

    pytest_runtest_logreport = Ordered.pytest_runtest_logreport


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


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr) if crash is None else crash.message
    return " ".join(text.split())[:160]


def _limit(item: pytest.Item, usual_s: float) -> None:
    item.add_marker(pytest.mark.timeout(max(200, 8 * usual_s)), append=False)


def _key(fixturedef) -> str:
    return f"fixture {fixturedef.baseid}::{fixturedef.argname}"


def _file(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()[:16]
