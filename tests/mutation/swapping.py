"""A fault put into functions that exist already: their code objects are replaced."""

import ast
import gc
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

from mutation.imports import ROOT, changed_tree

Functions = dict[tuple[str, str, int], list[FunctionType]]


def functions_of(root: Path) -> Functions:
    """The living functions whose sources lie below a folder, by file, name and line."""
    found = defaultdict(list)
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename.startswith(f"{root}/"):
            found[_key(one.__code__)].append(one)
    return found


def swap(file: str, functions: Functions) -> bool:
    """Put the fault that the environment names into the living functions of its file.

    Returns:
        Whether that was all: False where it is outside of functions, or changes what they close
        over, so that the file must be imported again.
    """
    path = str(ROOT / file)
    tree = changed_tree(path)
    assert tree is not None
    usual = dict(_functions(compile(ast.parse((ROOT / file).read_text()), path, "exec")))
    changed = compile(tree, path, "exec", dont_inherit=True)
    wanted = {key: code for key, code in _functions(changed) if code != usual[key]}
    if not wanted or not all(functions.get(key) for key in wanted):
        return False
    try:
        for key, code in wanted.items():
            for one in functions[key]:
                one.__code__ = code
    except ValueError:  # other free variables
        return False
    return True


def _key(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _functions(code: CodeType) -> Iterator[tuple[tuple[str, str, int], CodeType]]:
    """Those of a module and of its classes, not those inside of functions."""
    for inner in code.co_consts:
        if not isinstance(inner, CodeType):
            continue
        if inner.co_flags & 0x2:  # CO_NEWLOCALS: a function, not the body of a class
            yield _key(inner), inner
        else:
            yield from _functions(inner)
