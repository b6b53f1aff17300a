"""``python -m forefed.deploy.slim_site DIR``: the worker of a site without torch.

Its folder was written elsewhere for one run (slim_folder.py): the model as a graph for ONNX
Runtime, a tokeniser, and what the run's settings come to. So its policy is that run: of any other
settings it refuses every question, and it answers no question about its rows beside training. It
imports neither torch nor pydantic; what every other worker keeps (the same bytes for a task asked
again, words of a fault that stay here) it keeps, too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from forefed.core.errors import ProtocolError, UserError
from forefed.core.files import read_table
from forefed.deploy.answers import Answers, task_digest
from forefed.deploy.envelope import Envelope
from forefed.deploy.worker import work
from forefed.slim.client import Client
from forefed.slim.orders import read_order, read_state

log = logging.getLogger("forefed.site")
ABOUT = "run.json"
DETAILS = "the site's log has the details"
AGAIN = "write the site's graph again from the run's settings ('forefed site graph')"


class Refused(Exception):
    """What this site does not do. The reason goes to the server: it is made of settings."""


def settings_digest(text: str) -> str:
    """Of a run's settings as they travel."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class About:
    """ABOUT: the run that a folder was written for.

    Attributes:
        settings: digest of the run's settings.
        weights: what the server compares when a site joins.
        back: rounds that the server may go back.
        labels: the classes, 0 the first: what rows.jsonl counts by.
    """

    settings: str
    weights: Mapping[str, str]
    back: int
    labels: tuple[str, ...]

    @staticmethod
    def read(folder: Path) -> About:
        """Raises UserError: not there, or damaged."""
        told = read_table(folder / ABOUT, AGAIN)
        try:
            return About(
                str(told["settings"]),
                {str(k): str(v) for k, v in told["weights"].items()},
                int(told["back"]),
                tuple(map(str, told["labels"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder / ABOUT}: damaged ({error!r}); {AGAIN}") from None


@dataclass
class SlimSite:
    """Answers envelopes with what ONNX Runtime makes of the rows in ``graph``, a client's folder.

    ``folder``: keeps the answers.
    """

    name: str
    folder: Path
    graph: Path

    @cached_property
    def about(self) -> About:
        return About.read(self.graph)

    @cached_property
    def client(self) -> Client:
        return Client.of(self.graph)

    def __call__(self, asked: Envelope) -> Envelope:
        answered = replace(asked, text="", blobs={})
        try:
            if settings_digest(asked.text) != self.about.settings:
                raise Refused("its graph was written for a run with other settings, or versions")
            if asked.kind == "join":
                text = json.dumps({"site": self.name, **self.about.weights})
                return replace(answered, kind="joined", text=text)
            if asked.kind != "train":
                raise Refused("a site without torch answers no questions about its rows")
            return replace(answered, kind="trained", blobs={"update": self.train(asked)})
        except Refused as refusal:
            log.warning("refused: %s", refusal)
            return replace(answered, kind="refused", text=str(refusal))
        except Exception as error:
            log.exception("%s of round %d failed", asked.kind, asked.round)
            text = f"{type(error).__name__}; {DETAILS}"
            return replace(answered, kind="failed", text=text)

    def train(self, asked: Envelope) -> bytes:
        """The update of one order; the same bytes when it is asked for again."""
        started = time.monotonic()
        if asked.blobs.keys() != {"order", "state"}:
            raise ProtocolError(f"an order has a state and a header, not {sorted(asked.blobs)}")
        if not asked.run or not asked.run.isalnum():
            raise ProtocolError("the run's id is no word")
        params = read_state(asked.blobs["state"])
        order = read_order(asked.blobs["order"], params)
        if (order.round, order.client) != (asked.round, asked.client) or order.client < 0:
            raise ProtocolError("the order is not the one that its header announces")
        answers = Answers(self.folder / "done")
        digest = task_digest(asked.text.encode(), *(asked.blobs[n] for n in sorted(asked.blobs)))
        known = answers.find(asked.run, asked.round, digest)
        if known is not None:
            log.info("round %d was done already", asked.round)
            return known
        payload = self.client(asked.blobs["order"], params)
        answers.keep_answer(asked.run, asked.round, digest, payload, self.about.back)
        took = time.monotonic() - started
        log.info("round %d: %d bytes, %.1f s", order.round, len(payload), took)
        return payload


def check_slim(graph: Path) -> str:
    """What of it the site's owner should know.

    Raises:
        UserError: a folder that is not whole.
    """
    about, client = About.read(graph), Client.of(graph)
    return f"{graph}: {len(client.rows.labels)} rows; classes {', '.join(about.labels)}"


def site_of(root: Path, told: Mapping[str, Any]) -> SlimSite:
    """The site of a folder, by its site.toml.

    Raises:
        UserError: a policy, which such a site does not read, or a folder that is not whole.
    """
    if told.get("policy") or told.get("data") or told.get("script"):
        raise UserError(
            f"{root}: a site with a graph has its rows there, and no policy but the one run that "
            "the graph was written for; take policy, data and script out of site.toml"
        )
    site = SlimSite(str(told["name"]), root, root / Path(str(told["graph"])).expanduser())
    log.info("%s", check_slim(site.graph))
    return site


def main() -> None:
    import tomllib

    root = Path(sys.argv[1])
    told = tomllib.loads((root / "site.toml").read_text(encoding="utf-8"))
    work(root / "worker.sock", lambda: site_of(root, told))


if __name__ == "__main__":
    main()
