"""The command line: a file a group of commands, each a few lines around a function of the library.

`app` is the application; `main` its entry point.
"""

from forefed.cli.app import app
from forefed.cli.entry import main

__all__ = ["app", "main"]
