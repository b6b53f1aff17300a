"""The post that Flower carries: envelopes as Flower messages, over the Grid of a ServerApp."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from forefed.core.errors import ProtocolError
from forefed.core.types import LossReason
from forefed.deploy.envelope import Envelope
from forefed.deploy.flower_records import from_records, to_records
from forefed.deploy.parcels import Delivery, Failure

TYPE = "train"  # Flower's category of a message; the header says what is asked

REASONS: Mapping[int, LossReason] = {
    2: "error",  # the ClientApp raised
    3: "deadline",  # the message was not fetched in its life
    4: "deadline",  # nor the reply
    5: "offline",  # the node is gone
    8: "crash",  # the ClientApp's process died
}
"""Flower's error codes; any other one is an error of the site's installation."""


class GridPost:
    """A ``Post`` over Flower's Grid.

    Flower's errors name a wrong sender, so answers are known by the message that they answer.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def nodes(self) -> Mapping[int, str]:
        return {node.node_id: node.name for node in self.grid.get_nodes()}

    def push(self, letters: Sequence[tuple[int, Envelope]], ttl_s: float) -> Sequence[str | None]:
        messages = [
            Message(to_records(envelope), node, TYPE, ttl=ttl_s, group_id=str(envelope.round))
            for node, envelope in letters
        ]
        ids = list(self.grid.push_messages(messages)) if messages else []
        return ids or [None] * len(messages)

    def pull(self, questions: Sequence[str]) -> Iterable[Delivery]:
        for message in self.grid.pull_messages(questions):
            yield Delivery(message.metadata.reply_to_message_id, _content(message))


def _content(message: Message) -> Envelope | Failure:
    if message.has_error():
        error = message.error
        return Failure(REASONS.get(error.code, "error"), f"{error.code}: {error.reason or ''}")
    try:
        return from_records(message.content)
    except ProtocolError as error:
        return Failure("transport", str(error))
