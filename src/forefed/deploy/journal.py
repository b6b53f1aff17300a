"""What a site has done: the answer to every task, and what it keeps for the next one.

One file per run and round holds both, written at once, so that a task asked for again (the carrier
delivered twice, the worker was killed, the server goes on from a checkpoint) gets the same answer
and moves nothing a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save

from forefed.core.files import write_atomic
from forefed.core.types import ClientState
from forefed.deploy.answers import ANSWER, Answers, about, readable
from forefed.federation.state import RunState

FOLLOWED = "followed.safetensors"
PHASE = "phase"
_STATE = "state/"


@dataclass(frozen=True)
class Journal(Answers):
    """The answers of one site, with its own state beside each, and what it has followed."""

    def state(self, run: str, round: int) -> ClientState:
        """What was kept when the last task before this round was done."""
        earlier = [r for r in self.rounds(run) if r < round]
        if not earlier:
            return {}
        tensors = load_file(readable(self._path(run, earlier[-1])))
        return {n.removeprefix(_STATE): x for n, x in tensors.items() if n.startswith(_STATE)}

    def keep(
        self, run: str, round: int, task: str, answer: bytes, state: ClientState, back: int
    ) -> None:
        """A task that was done. ``back``: rounds that the server may go back, to its checkpoint."""
        tensors = {_STATE + n: x.detach().cpu().contiguous() for n, x in state.items()}
        tensors[ANSWER] = torch.frombuffer(bytearray(answer), dtype=torch.uint8)
        self.keep_file(run, round, save(tensors, about(task)), back)

    def followed(self, run: str) -> RunState | None:
        """The server's state as this site has followed it last; None: never, or not in this run."""
        path = self.folder / run / FOLLOWED
        if not path.exists():
            return None
        tensors = load_file(readable(path))
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
