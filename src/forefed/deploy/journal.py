"""What a site has done: the answer to every task, and what it keeps for the next one.

One file per run and round holds both, written at once, so that a task asked for again (the carrier
delivered twice, the worker was killed, the server goes on from a checkpoint) gets the same answer
and moves nothing a second time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save

from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.types import ClientState
from forefed.federation.state import RunState

RUNS = 4  # whose files are kept
FOLLOWED = "followed.safetensors"
PHASE = "phase"
_ANSWER, _STATE = "answer", "state/"


@dataclass(frozen=True)
class Journal:
    """Files "<folder>/<run>/<round>.safetensors" of one site, beside what it has followed."""

    folder: Path

    def find(self, run: str, round: int, task: str) -> bytes | None:
        """The answer to this task; None if it was never done, or another one was."""
        path = self._path(run, round)
        if not path.exists():
            return None
        with safetensors.safe_open(_readable(path), framework="pt") as file:
            if json.loads((file.metadata() or {}).get("forefed", "{}")).get("task") != task:
                return None
            return bytes(file.get_tensor(_ANSWER).numpy())

    def state(self, run: str, round: int) -> ClientState:
        """What was kept when the last task before this round was done."""
        earlier = [r for r in self.rounds(run) if r < round]
        if not earlier:
            return {}
        tensors = load_file(_readable(self._path(run, earlier[-1])))
        return {n.removeprefix(_STATE): x for n, x in tensors.items() if n.startswith(_STATE)}

    def keep(
        self, run: str, round: int, task: str, answer: bytes, state: ClientState, back: int
    ) -> None:
        """A task that was done. ``back``: rounds that the server may go back, to its checkpoint."""
        tensors = {_STATE + n: x.detach().cpu().contiguous() for n, x in state.items()}
        tensors[_ANSWER] = torch.frombuffer(bytearray(answer), dtype=torch.uint8)
        content = save(tensors, {"forefed": json.dumps({"task": task})})
        write_atomic(self._path(run, round), content, mode=0o600)
        rounds = self.rounds(run)
        needed = max((r for r in rounds if r <= round - back), default=0)
        for other in rounds:
            if other < needed or other > round:  # too old, or undone by the server
                self._path(run, other).unlink()
        runs = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in runs[:-RUNS]:
            shutil.rmtree(old)

    def followed(self, run: str) -> RunState | None:
        """The server's state as this site has followed it last; None: never, or not in this run."""
        path = self.folder / run / FOLLOWED
        if not path.exists():
            return None
        tensors = load_file(_readable(path))
        return RunState.of_flat(int(tensors.pop("round")), tensors)

    def keep_followed(self, run: str, state: RunState) -> None:
        """A newer state, in the place of the former one."""
        tensors = {n: x.detach().cpu().contiguous().clone() for n, x in state.flat().items()}
        tensors["round"] = torch.tensor(state.round)
        write_atomic(self.folder / run / FOLLOWED, save(tensors), mode=0o600)

    def phase(self, run: str) -> bytes | None:
        """What this site keeps from the last phase of the channel; None: nothing."""
        path = self.folder / run / PHASE
        return path.read_bytes() if path.exists() else None

    def keep_phase(self, run: str, kept: bytes) -> None:
        """Before the answer leaves: what was told once must not be told otherwise."""
        write_atomic(self.folder / run / PHASE, kept, mode=0o600)

    def rounds(self, run: str) -> list[int]:
        """Rounds of this run that were done, in ascending order."""
        return sorted(int(path.stem) for path in (self.folder / run).glob("[0-9]*.safetensors"))

    def _path(self, run: str, round: int) -> Path:
        return self.folder / run / f"{round}.safetensors"


def task_digest(*parts: bytes) -> str:
    """One name for everything that decides a task."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _readable(path: Path) -> Path:
    try:
        with safetensors.safe_open(path, framework="pt"):
            return path
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it") from None
