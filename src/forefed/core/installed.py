"""Versions of installed packages."""

from __future__ import annotations

import importlib.metadata
from functools import cache


@cache
def version(package: str) -> str:
    """What is installed of a package; its description is parsed once (7 ms).

    Raises:
        importlib.metadata.PackageNotFoundError: nothing is.
    """
    return importlib.metadata.version(package)
