"""What a site has answered: a file per run and round, so that a task asked for again gets the same
bytes. No torch here: a site without it (slim_site.py) keeps no more than this; journal.py has the
rest of what a site keeps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from forefed.core.errors import UserError
from forefed.core.files import write_atomic

RUNS = 4  # whose files are kept
ANSWER = "answer"


@dataclass(frozen=True)
class Answers:
    """Files "<folder>/<run>/<round>.safetensors" of one site."""

    folder: Path

    def find(self, run: str, round: int, task: str) -> bytes | None:
        """The answer to this task; None if it was never done, or another one was."""
        path = self._path(run, round)
        if not path.exists():
            return None
        with safetensors.safe_open(readable(path), framework="np") as file:
            if json.loads((file.metadata() or {}).get("forefed", "{}")).get("task") != task:
                return None
            return bytes(file.get_tensor(ANSWER))

    def keep_answer(self, run: str, round: int, task: str, answer: bytes, back: int) -> None:
        """A task that was done. ``back``: rounds that the server may go back, to its checkpoint."""
        arrays = {ANSWER: np.frombuffer(answer, dtype=np.uint8)}
        self.keep_file(run, round, safetensors.numpy.save(arrays, about(task)), back)

    def keep_file(self, run: str, round: int, content: bytes, back: int) -> None:
        """This round's file; what nobody can ask for any more goes."""
        write_atomic(self._path(run, round), content, mode=0o600)
        rounds = self.rounds(run)
        needed = max((r for r in rounds if r <= round - back), default=0)
        for other in rounds:
            if other < needed or other > round:  # too old, or undone by the server
                self._path(run, other).unlink()
        runs = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in runs[:-RUNS]:
            shutil.rmtree(old)

    def rounds(self, run: str) -> list[int]:
        """Rounds of this run that were done, in ascending order."""
        return sorted(int(path.stem) for path in (self.folder / run).glob("[0-9]*.safetensors"))

    def _path(self, run: str, round: int) -> Path:
        return self.folder / run / f"{round}.safetensors"


def about(task: str) -> dict[str, str]:
    """The words of a file: which task it answers."""
    return {"forefed": json.dumps({"task": task})}


def task_digest(*parts: bytes) -> str:
    """One name for everything that decides a task."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def readable(path: Path) -> Path:
    """Raises UserError: a damaged file."""
    try:
        with safetensors.safe_open(path, framework="np"):
            return path
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it") from None
