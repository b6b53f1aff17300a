"""The embedded data set: docstrings of the running interpreter's standard library.

Nothing is downloaded and nothing is stored in the repository: the source files of the interpreter
are parsed (never imported). An example is the docstring of one function or class; its label is the
area of the library reference its module belongs to; its natural client is the module.

Texts differ between interpreter versions, so a record states the version and a digest of the texts.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forefed.core.files import write_atomic

MIN_CHARACTERS = 40
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)

# Top-level modules by area: the chapters of the library reference (docs.python.org, "The Python
# Standard Library"), neighbouring ones joined. Left out are chapters without a subject of their own
# (data types, functional programming, generic operating system services, frameworks) and plumbing.
_AREAS: dict[str, str] = {
    # Graphical user interfaces with Tk (with IDLE and turtle), and the terminal's curses.
    "gui": "tkinter idlelib turtle turtledemo curses",
    # Concurrent execution; asynchronous I/O and waiting.
    "concurrency": (
        "asyncio multiprocessing threading _threading_local concurrent queue sched subprocess "
        "contextvars selectors signal"
    ),
    # Internet protocols and support; sockets.
    "internet": (
        "http urllib ipaddress imaplib wsgiref nntplib xmlrpc ssl smtplib ftplib socketserver "
        "socket telnetlib cgi cgitb poplib uuid webbrowser asynchat asyncore smtpd netrc nturl2path"
    ),
    # File and directory access; data compression and archiving; data persistence; file formats.
    "files": (
        "os pathlib posixpath ntpath genericpath stat fileinput filecmp tempfile glob fnmatch "
        "linecache shutil io _pyio bz2 gzip lzma zipfile tarfile _compression pickle copyreg "
        "shelve dbm sqlite3 csv configparser tomllib plistlib"
    ),
    # Text processing; codecs; internationalisation.
    "text": "re difflib textwrap string stringprep codecs encodings locale gettext",
    # Numeric and mathematical modules.
    "numbers": "decimal _pydecimal fractions statistics random numbers math cmath",
    # Development tools; debugging and profiling.
    "testing": (
        "unittest doctest pydoc pdb bdb trace tracemalloc timeit profile cProfile pstats "
        "faulthandler"
    ),
    # Python runtime services; Python language services; custom interpreters.
    "language": (
        "typing inspect ast symtable dis opcode token tokenize keyword tabnanny pyclbr py_compile "
        "compileall pickletools lib2to3 traceback contextlib dataclasses warnings annotationlib "
        "__future__ code codeop site _sitebuiltins sysconfig"
    ),
    # Importing modules; software packaging and distribution.
    "packaging": (
        "distutils importlib venv ensurepip zipapp zipimport pkgutil runpy modulefinder imp"
    ),
    # Internet data handling; structured markup.
    "markup": "email xml html mailbox mimetypes json base64 quopri mailcap _markupbase binhex uu",
}
AREAS: tuple[str, ...] = tuple(_AREAS)
_AREA_OF_MODULE = {module: area for area, names in _AREAS.items() for module in names.split()}


@dataclass(frozen=True)
class Docstring:
    """One example: ``text``, ``area`` (a name of ``AREAS``) and ``module`` (the natural client)."""

    text: str
    area: str
    module: str


def read_docstrings(stdlib: Path | None = None, cache_dir: Path | None = None) -> list[Docstring]:
    """All distinct docstrings of more than 40 characters below ``stdlib``, in path order.

    Files of other Python dialects (templates, ``lib2to3`` fixtures) that do not parse are passed
    over; modules of no area are left out. Parsing takes seconds, so with ``cache_dir`` the list is
    kept there, under a name made of every file's path, size and time of change.
    """
    root = stdlib or Path(sysconfig.get_paths()["stdlib"])
    paths = [(path, area) for path in sorted(root.rglob("*.py")) if (area := _area(path, root))]
    if cache_dir is None:
        return _parse(paths, root)
    stored = cache_dir / f"pydocs-{_fingerprint(paths, root)}.jsonl"
    found = _load(stored) if stored.exists() else None
    if found is None:
        found = _parse(paths, root)
        lines = [[provenance(found)["sha256"]], *([d.text, d.area, d.module] for d in found)]
        write_atomic(stored, "\n".join(map(json.dumps, lines)).encode())
    return found


def _area(path: Path, root: Path) -> str | None:
    parts = path.relative_to(root).parts
    return (
        None if SKIPPED_FOLDERS & set(parts) else _AREA_OF_MODULE.get(parts[0].removesuffix(".py"))
    )


def _parse(paths: list[tuple[Path, str]], root: Path) -> list[Docstring]:
    seen: set[str] = set()
    found: list[Docstring] = []
    for path, area in paths:
        relative = path.relative_to(root).with_suffix("")
        module = ".".join(relative.parts).removesuffix(".__init__")
        for text in _docstrings_of(path):
            if text not in seen:
                seen.add(text)
                found.append(Docstring(text=text, area=area, module=module))
    return found


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text and len(text) > MIN_CHARACTERS:
                yield text


def _fingerprint(paths: list[tuple[Path, str]], root: Path) -> str:
    digest = hashlib.sha256(f"{platform.python_version()} {_AREAS}".encode())
    for path, _ in paths:
        stat = path.stat()
        line = f"{path.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n"
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def _load(stored: Path) -> list[Docstring] | None:
    """The stored list, or None when it is damaged."""
    try:
        (sha256,), *rows = map(json.loads, stored.read_text(encoding="utf-8").split("\n"))
        found = [Docstring(*row) for row in rows]
    except (ValueError, TypeError):
        return None
    return found if provenance(found)["sha256"] == sha256 else None


def provenance(docstrings: list[Docstring]) -> dict[str, str | int]:
    """What a record states about this source: interpreter, counts and a digest of the examples."""
    digest = hashlib.sha256()
    for doc in docstrings:
        digest.update("\0".join((doc.text, doc.area, doc.module, "")).encode())
    return {
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "docstrings": len(docstrings),
        "modules": len({doc.module for doc in docstrings}),
        "sha256": digest.hexdigest(),
    }
