"""What settings mean: the strings below them in their class, read from the source when asked for.

pydantic can do it when a class is made (``use_attribute_docstrings``), which reads the source of
every class of settings at every start: half a second, for texts that two commands print.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache

Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def attribute_docstrings(cls: type) -> dict[str, str]:
    """By the name of an attribute, of this class or of one that it derives from: the string literal
    right below its declaration. None where the source is not there."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _of_module(base.__module__).get(base.__qualname__, {})
    return found


@cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    """For every class of a module, by its qualified name: its attributes' strings."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    return dict(_classes(tree, ""))


def _classes(tree: ast.AST, where: str) -> Iterator[tuple[str, dict[str, str]]]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, Named):
            continue
        inside = f"{where}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield inside, dict(_strings(node))
            yield from _classes(node, f"{inside}.")
        else:
            yield from _classes(node, f"{inside}.<locals>.")


def _strings(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for above, below in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = below.value.value
            if isinstance(text, str):
                yield above.target.id, inspect.cleandoc(text)
