"""Work in a copy of this process: apart from it as a process of its own, without its imports.

Importing torch, transformers and PEFT takes four seconds of processor time; a copy has them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable

import torch


def begun(work: Callable[[], object], log: str | os.PathLike[str]) -> int:
    """Start the work in a copy of this process, whose words go to the file; its number. It ends
    with status 0, or with 1 and the traceback in the file."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)  # a copy has no threads of this one's, and would wait for them
        sys.stdout = sys.stderr = open(log, "w", encoding="utf-8")  # noqa: SIM115 (the last one)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)  # nothing of pytest's may run twice


def in_a_copy(work: Callable[[], object]) -> str:
    """What the work says. Whatever it changes in this process's memory is gone with the copy."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as log:
        status = os.waitstatus_to_exitcode(os.waitpid(begun(work, log.name), 0)[1])
        said = log.read()
    assert status == 0, said
    return said
