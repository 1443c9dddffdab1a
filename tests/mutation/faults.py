"""The faults that can be put into a Python source: small edits of its syntax tree.

`faults(tree)` lists them in a fixed order, so that (file, number) names a fault in any process.
Not among them: texts (docstrings, help, what is logged; but a warning left out is one),
annotations, `__main__` guards, what only type checkers run, and edits that must raise at once, such
as a string minus a string.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
PAIRS = ("min max", "sum mean", "mean median", "any all", "floor ceil", "argmin argmax")
NAMES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])} | {"mean": "sum"}
TEXTS = {"help", "description", "metavar", "epilog", "title", "usage", "stacklevel"}
LEAVING = (ast.Return, ast.Continue, ast.Break, ast.Raise)


@dataclass(frozen=True)
class Fault:
    """An edit: `put` makes it in the tree that it was found in."""

    line: int
    statement: int  # first line of the statement around it
    scope: str  # what runs it: "function", "default" (of a function), or "module" (or class)
    operator: str
    put: Callable[[], None]
    nodes: tuple[ast.AST, ast.AST] | None = None
    texts: tuple[str, str] = ("", "")  # in place of nodes

    @property
    def before(self) -> str:
        """What stands there."""
        return self.texts[0] if self.nodes is None else _shown(self.nodes[0])

    @property
    def after(self) -> str:
        """What the fault makes of it."""
        return self.texts[1] if self.nodes is None else _shown(self.nodes[1])


@dataclass(frozen=True)
class _Place:
    """Where a node hangs, and what it is in."""

    parent: ast.AST
    field: str
    index: int | None
    statement: ast.stmt
    scope: str
    function: str

    def replace(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def faults(tree: ast.Module) -> list[Fault]:
    """All faults of a source, in the order of its text."""
    return [fault for node, place in _nodes(tree) for fault in _of_node(node, place)]


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, _Place]]:
    for index, statement in enumerate(tree.body):
        yield from _below(statement, _Place(tree, "body", index, statement, "module", ""))


def _below(node: ast.AST, place: _Place) -> Iterator[tuple[ast.AST, _Place]]:
    if _is_no_fault(node):
        return
    yield node, place
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "format_spec", "type_params", "ops", "op"):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST):
                continue
            scope, function = place.scope, place.function
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                scope = {"body": "function", "args": "default"}.get(name, scope)
                function = getattr(node, "name", function)
            statement = child if isinstance(child, ast.stmt) else place.statement
            at = index if isinstance(value, list) else None
            yield from _below(child, _Place(node, name, at, statement, scope, function))


def _is_no_fault(node: ast.AST) -> bool:
    """Whether all below a node is text, or never run by a user."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
    if isinstance(node, ast.keyword):
        return node.arg in TEXTS
    if isinstance(node, ast.Expr) and _logs(node.value, ("debug", "info")):
        return True
    if _logs(node):
        return True
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return isinstance(target, ast.Name) and target.id in ("__all__", "__slots__")
    return isinstance(node, (ast.Import, ast.ImportFrom)) or _is_text(node)


def _logs(node: ast.AST, levels: tuple[str, ...] = ()) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"), attr=level)):
            return not levels or level in levels
    return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _of_node(node: ast.AST, place: _Place) -> Iterator[Fault]:
    for operator, new in _edits(node, place):
        yield Fault(
            line=getattr(node, "lineno", place.statement.lineno),
            statement=place.statement.lineno,
            scope=place.scope,
            operator=operator,
            put=partial(place.replace, new),
            nodes=(node, new),
        )


def _edits(node: ast.AST, place: _Place) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in a node's place, and the name of the kind of edit."""
    copied = dict(ast.iter_fields(node))

    def changed(**fields: object) -> ast.AST:
        return ast.copy_location(type(node)(**copied | fields), node)

    match node:
        case ast.Compare(ops=[first, *rest]):
            for other in COMPARISONS[type(first)]:
                yield "comparison", changed(ops=[other(), *rest])
        case ast.BinOp(op=op) if type(op) in ARITHMETIC and not _joins(node):
            yield "arithmetic", changed(op=ARITHMETIC[type(op)]())
        case ast.AugAssign(op=op) if type(op) in ARITHMETIC and not _joins(node):
            yield "arithmetic", changed(op=ARITHMETIC[type(op)]())
            yield "dropped statement", _nothing(node)
        case ast.BoolOp(op=op):
            yield "and/or", changed(op=ast.And() if isinstance(op, ast.Or) else ast.Or())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "dropped not", operand
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "dropped minus", operand
        case ast.Constant(value=bool(value)):
            yield "constant", changed(value=not value)
        case ast.Constant(value=int(value)) | ast.Constant(value=float(value)):
            yield "constant", changed(value=value + 1)
            if value in (0, 1):
                yield "constant", changed(value=type(value)(1 - value) if value else value - 1)
            elif isinstance(value, float):
                yield "constant", changed(value=value * 2)
        case ast.Name(id=name) if name in NAMES:
            if isinstance(place.parent, ast.Call) and place.field == "func" and name != "sum":
                yield "name", changed(id=NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES and place.field == "func":
            of_statistics = ast.unparse(node.value) == "statistics"
            yield "name", changed(attr="median" if of_statistics else NAMES[name])
        case ast.IfExp(body=body, orelse=orelse):
            yield "swapped branches", changed(body=orelse, orelse=body)
        case ast.Slice(upper=ast.expr() as upper) if not isinstance(upper, ast.Constant):
            yield "slice", changed(upper=ast.BinOp(upper, ast.Sub(), ast.Constant(1)))
        case ast.Expr(value=ast.Call() | ast.Await()):
            yield "dropped statement", _nothing(node)
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            if place.function != "__init__":
                yield "dropped statement", _nothing(node)
        case ast.If(body=[*_, ast.stmt() as last], orelse=[]) if isinstance(last, LEAVING):
            yield "early return removed", _nothing(node)
    if isinstance(node, ast.Call):
        yield from _edits_of_call(node, changed)


def _edits_of_call(
    node: ast.Call, changed: Callable[..., ast.AST]
) -> Iterator[tuple[str, ast.AST]]:
    arguments = node.args
    for first in range(len(arguments) - 1):
        pair = arguments[first : first + 2]
        if not any(isinstance(argument, ast.Starred) for argument in pair):
            swapped = [*arguments[:first], *pair[::-1], *arguments[first + 2 :]]
            yield "swapped arguments", changed(args=swapped)
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in TEXTS:
            rest = [*node.keywords[:index], *node.keywords[index + 1 :]]
            yield "dropped keyword", changed(keywords=rest)
    if isinstance(node.func, ast.Name) and node.func.id == "range":
        stop = min(1, len(arguments) - 1)
        if not isinstance(arguments[stop], (ast.Constant, ast.Starred)):
            less = ast.BinOp(arguments[stop], ast.Sub(), ast.Constant(1))
            yield "range", changed(args=[*arguments[:stop], less, *arguments[stop + 1 :]])


def _joins(node: ast.BinOp | ast.AugAssign) -> bool:
    """Whether an operator joins texts or lists, for which the other operators raise."""
    sides = [node.value] if isinstance(node, ast.AugAssign) else [node.left, node.right]
    kinds = (ast.JoinedStr, ast.List, ast.ListComp, ast.Tuple, ast.Dict, ast.Set)
    return any(
        isinstance(side, kinds) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )


def _nothing(node: ast.stmt) -> ast.AST:
    return ast.copy_location(ast.Pass(), node)


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= 120 else text[:117] + "..."
