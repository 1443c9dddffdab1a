"""Changed sources, put in place while they are imported; no file of the checkout is written.

What to change stands in the environment, so that every process of a test does the same: those that
it forks inherit it, and those that it starts again find `startup/sitecustomize.py` on their path.

MUTATION_FAULT  `FILE:NUMBER`, the fault to put in, as `faults.faults` numbers it; or
                `FILE:knownNUMBER`, one of `known.KNOWN`
MUTATION_LINES  a folder: each process notes there which statements it runs, for MUTATION_TEST
"""

import ast
import builtins
import itertools
import os
from importlib.machinery import SourceFileLoader
from pathlib import Path

from mutation.faults import faults
from mutation.known import KNOWN

ROOT = Path(__file__).parents[2]
_open, _write, _close = os.open, os.write, os.close  # tests put others in their place


def install() -> None:
    """Let imports of this process, and of those that come from it, do what the environment says."""
    usual = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> object:
        path = self.get_filename(name)
        tree = changed_tree(path)
        return usual(self, name) if tree is None else compile(tree, path, "exec", dont_inherit=True)

    SourceFileLoader.get_code = get_code
    builtins.mutation_line = _Lines().note


def changed_tree(path: str) -> ast.Module | None:
    """The tree of a source that is to be changed; None for all others."""
    if not path.startswith(f"{ROOT}/"):
        return None
    name = path.removeprefix(f"{ROOT}/")
    file, _, number = os.environ.get("MUTATION_FAULT", "").partition(":")
    if file == name and number.startswith("known"):
        return KNOWN[int(number.removeprefix("known"))].tree(ROOT)
    if file == name:
        tree = ast.parse(Path(path).read_text())
        faults(tree)[int(number)].put()
        return ast.fix_missing_locations(tree)
    is_recorded = name.startswith(("dali_rsb/", "pipelines/")) and "/kernels/" not in name
    if "MUTATION_LINES" in os.environ and is_recorded:
        return _with_notes(ast.parse(Path(path).read_text()), name)
    return None


def _with_notes(tree: ast.Module, name: str) -> ast.Module:
    """A tree that tells of each statement of its functions that it comes to it."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in {inner for function in functions for inner in ast.walk(function)}:
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list) and not isinstance(node, ast.ClassDef):
                noted = [(_note(name, statement), statement) for statement in statements]
                setattr(node, field, list(itertools.chain(*noted)))
    return ast.fix_missing_locations(tree)


def _note(name: str, statement: ast.stmt) -> ast.stmt:
    (call,) = ast.parse(f"mutation_line({name!r}, {statement.lineno})").body
    for node in ast.walk(call):
        ast.copy_location(node, statement)
    return call


class _Lines:
    """Writes each statement once for a test, at once: a process may be killed."""

    def __init__(self) -> None:
        self.process, self.test, self.seen, self.file = 0, "", set(), -1

    def note(self, name: str, line: int) -> None:
        if self.process != os.getpid() or self.test != os.environ.get("MUTATION_TEST", ""):
            self._begin()
        if (name, line) not in self.seen and self.file >= 0:
            self.seen.add((name, line))
            _write(self.file, f"{name}:{line}\n".encode())

    def _begin(self) -> None:
        if self.file >= 0 and self.process == os.getpid():
            _close(self.file)
        self.process, self.test = os.getpid(), os.environ.get("MUTATION_TEST", "")
        self.seen, folder = set(), os.environ.get("MUTATION_LINES")
        path = f"{folder}/{self.test}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.file = _open(path, flags) if folder and self.test else -1
