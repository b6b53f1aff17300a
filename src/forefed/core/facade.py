"""Packages that are called like what they are for.

``forefed.run`` is a package and the function that everybody wants. Importing a package binds it to
its name in the package above, whoever imports it and whenever, so ``from forefed import run`` would
be the function or the package by chance. Here the package itself is made callable: both are right.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that passes a call on to the function of its own name."""

    _function: Callable[..., Any]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._function(*arguments, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)


def callable_package(name: str, function: Callable[..., Any]) -> None:
    """Let the package of this name be called as ``function``."""
    package = sys.modules[name]
    package.__class__ = CallablePackage
    package._function = function  # type: ignore[attr-defined]
