"""The embedded data set: docstrings of the running interpreter's standard library.

Nothing is downloaded and nothing is stored in the repository: the source files of the interpreter
are parsed (never imported). An example is the docstring of one function or class; its label is the
area of the library reference its module belongs to; its natural client is the module.

Texts differ between interpreter versions, so a record states the version and a digest of the texts.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIN_CHARACTERS = 40
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)

# Top-level modules by area of the library reference (docs.python.org, "The Python Standard Library").
# A name listed as "package.module" overrides its package.
_AREAS: dict[str, str] = {
    "gui": "tkinter idlelib turtle turtledemo curses _tkinter cmd rlcompleter",
    "concurrency": (
        "asyncio multiprocessing threading concurrent queue sched subprocess _threading_local "
        "contextvars selectors signal"
    ),
    "internet": (
        "http urllib ipaddress imaplib wsgiref nntplib xmlrpc ssl smtplib ftplib socketserver socket "
        "telnetlib cgi cgitb poplib uuid webbrowser asynchat asyncore smtpd netrc nturl2path "
        "hmac hashlib secrets crypt"
    ),
    "files": (
        "tarfile pathlib zipfile shutil os tempfile bz2 gzip lzma ntpath genericpath posixpath "
        "fileinput stat filecmp fnmatch glob linecache _pyio io pickle pickletools shelve dbm copyreg "
        "csv configparser tomllib plistlib _compression pty pipes getpass logging argparse optparse "
        "getopt sqlite3 xdrlib chunk wave platform _osx_support _aix_support ctypes"
    ),
    "text": (
        "difflib re textwrap string codecs encodings locale gettext shlex pprint reprlib stringprep "
        "calendar datetime _pydatetime _strptime zoneinfo collections _collections_abc heapq bisect weakref types "
        "copy enum graphlib abc _py_abc"
    ),
    "numbers": (
        "_pydecimal decimal statistics random fractions numbers math cmath functools operator itertools"
    ),
    "testing": (
        "unittest doctest pdb bdb trace tracemalloc timeit profile cProfile pstats pydoc faulthandler"
    ),
    "language": (
        "typing inspect ast symtable dis tokenize traceback contextlib dataclasses warnings code "
        "codeop pyclbr tabnanny py_compile compileall lib2to3 token keyword site sysconfig "
        "_sitebuiltins __future__ annotationlib opcode"
    ),
    "packaging": "distutils importlib venv ensurepip zipapp zipimport pkgutil runpy modulefinder imp",
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


def read_docstrings(stdlib: Path | None = None) -> list[Docstring]:
    """All distinct docstrings of more than 40 characters below ``stdlib``, in path order.

    Files of other Python dialects (templates, ``lib2to3`` fixtures) that do not parse are passed over;
    modules of no area are left out.
    """
    root = stdlib or Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    found: list[Docstring] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts):
            continue
        area = _AREA_OF_MODULE.get(relative.parts[0].removesuffix(".py"))
        if area is None:
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
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


def provenance(docstrings: list[Docstring]) -> dict[str, str | int]:
    """What a record states about this source: interpreter, count and a digest of the texts."""
    digest = hashlib.sha256()
    for doc in docstrings:
        digest.update(doc.text.encode())
        digest.update(b"\0")
    return {
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "docstrings": len(docstrings),
        "modules": len({doc.module for doc in docstrings}),
        "sha256": digest.hexdigest(),
    }
