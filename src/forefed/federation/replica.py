"""A client's copy of the server's state, kept up to date by records.

In a rehearsal all clients that are up to date hold the same bits, so one replica stands for all of
them; what each of them would have received to get there is counted for each.
"""

from __future__ import annotations

from dataclasses import dataclass

from forefed.core.errors import ProtocolError
from forefed.core.types import Params
from forefed.federation.server import Server
from forefed.federation.state import RunState
from forefed.wire.records import decode_records


@dataclass
class Replica:
    """``server`` does what the server did. ``state`` changes in place; None before the first
    visit."""

    server: Server
    state: RunState | None = None

    def receive(self, round: int, params: Params, carried: Params) -> None:
        """Start from what the server sent at the beginning of this round."""
        flat = {f"params/{n}": x for n, x in params.items()}
        self.state = RunState.of_flat(round - 1, {**flat, **carried})

    def catch_up(self, missed: bytes) -> None:
        """Do again what the server did in the rounds that are recorded here and not done yet.

        Raises:
            ProtocolError: damaged records, or records that begin after the replica's state.
        """
        if self.state is None:
            raise ProtocolError(
                "records came, but the parameters that they go on from are not here"
            )
        for record in decode_records(missed, self.state.params):
            if record.round > self.state.round:
                self.state = self.server.replay(self.state, record)

    def held(self) -> tuple[Params, Params]:
        """Parameters and broadcast, as a client has them that is up to date."""
        assert self.state is not None, "it has received the parameters, or begun with them"
        return self.state.params, self.server.broadcast(self.state)
