"""Flower's process at a site: hands every message to the warm worker, and its answer back.

Flower starts this process for each message, so nothing heavy is imported, and nothing is decided
here. Every failure becomes an answer: Flower would send a traceback with the paths of this machine.
"""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from forefed.core.errors import ProtocolError
from forefed.deploy.envelope import Envelope
from forefed.deploy.flower_records import from_records, to_records
from forefed.deploy.worker_client import ask

SOCKET = "socket"  # the entry of the node's configuration that names the worker's socket

app = ClientApp()


@app.train()
def forward(message: Message, context: Context) -> Message:
    """The worker's answer to one message."""
    try:
        asked = from_records(message.content)
        path = Path(str(context.node_config[SOCKET]))
        answered = ask(path, asked, life_s=left_s(message))
    except (ProtocolError, KeyError) as error:
        text = f"the message could not be read at the site ({type(error).__name__})"
        answered = Envelope("failed", "", text=text)
    return Message(to_records(answered), reply_to=message)


def left_s(message: Message) -> float:
    """Seconds for which anybody still waits for the answer, wherever the message lay until now.

    A clock that is behind the server's makes it longer, but no longer than the whole life.
    """
    life, born = message.metadata.ttl, message.metadata.created_at
    return min(life, max(1.0, born + life - time.time()))
