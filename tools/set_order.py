"""Where a function walks a set in an order that its result could depend on.

The order of a set of bytes differs from process to process. Types are not inferred: a set is what looks like
one in the function itself (a literal, a call, an annotation, a name assigned from these).
"""

import ast
from collections.abc import Iterator

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
ORDER_FREE = frozenset({"all", "any", "frozenset", "len", "max", "min", "set", "sorted", "sum"})
ORDERED = frozenset({"dict", "enumerate", "iter", "list", "map", "next", "reversed", "tuple", "zip"})
SET_METHODS = frozenset({"difference", "intersection", "symmetric_difference", "union"})
SET_OPERATORS = (ast.BitAnd, ast.BitOr, ast.BitXor, ast.Sub)


def walks_over_sets(tree: ast.Module) -> Iterator[int]:
    """The line of every walk over a set, function by function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]
    for function in (tree, *functions):
        sets = _set_names(function)
        for node in _own_nodes(function):
            yield from (iterable.lineno for iterable in _walked_in_order(node) if _is_set(iterable, sets))


def _own_nodes(root: ast.AST) -> Iterator[ast.AST]:
    """The nodes of `root` without those of functions defined in it, and without what order cannot touch."""
    for child in ast.iter_child_nodes(root):
        if isinstance(child, FUNCTION):
            continue
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in ORDER_FREE:
            generators = [arg for arg in child.args if isinstance(arg, ast.GeneratorExp | ast.ListComp)]
            for generator in generators:
                yield from _own_nodes(generator)
            yield from (node for arg in child.args if arg not in generators for node in _own_nodes(arg))
            continue
        yield child
        yield from _own_nodes(child)


def _set_names(function: ast.AST) -> frozenset[str]:
    """Names that are annotated as sets or assigned one, in this function."""
    names: set[str] = set()
    for node in _own_nodes(function):
        match node:
            case ast.arg(arg=name, annotation=ast.expr() as annotation) if _is_set_type(annotation):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation) if _is_set_type(annotation):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_set(value, frozenset(names)):
                names.add(name)
    return frozenset(names)


def _is_set_type(annotation: ast.expr) -> bool:
    name = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    return isinstance(name, ast.Name) and name.id in {"AbstractSet", "frozenset", "set"}


def _is_set(node: ast.expr, sets: frozenset[str]) -> bool:
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Name(id=name):
            return name in sets
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.Call(func=ast.Attribute(value=value, attr=attr)):
            return attr in SET_METHODS and _is_set(value, sets)
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, SET_OPERATORS) and (_is_set(left, sets) or _is_set(right, sets))
    return False


def _walked_in_order(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.For(iter=iterable) | ast.Starred(value=iterable) | ast.YieldFrom(value=iterable):
            yield iterable
        case ast.ListComp() | ast.GeneratorExp() | ast.DictComp():
            yield from (generator.iter for generator in node.generators)
        case ast.Call(func=ast.Name(id=name)) if name in ORDERED:
            yield from node.args
        case ast.Call(func=ast.Attribute(attr="join")):
            yield from node.args
