"""The audit: the ladder of attacks on messages of the run's own client.

Source: shared measures of gradient leakage (labels, tokens, rows), each by an attack that knows the
configuration, its defences and all keys that are public; nothing is given to it for free but what
is said beside its number. Every number stands beside the rows, the batch size and the steps of the
client that it is of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forefed.audit.bench import Bench
from forefed.audit.finding import Finding
from forefed.audit.start import of_start
from forefed.audit.subject import subject_of
from forefed.audit.trials import Auxiliary
from forefed.config.config import Config
from forefed.config.reveals import protections, remedy_of, reveals
from forefed.core.types import Json

TRIALS = 12


@dataclass(frozen=True)
class Audit:
    """What ``forefed audit`` found."""

    config: Config
    about: Json
    findings: tuple[Finding, ...]
    line: str
    notes: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """The worst cases in plain words, one sentence for each size of client."""
        by_client: dict[str, list[Finding]] = {}
        for one in self.findings:
            if one.leaks:
                by_client.setdefault(sender(one), []).append(one)
        return [
            f"{who}: {'; '.join(said(f) for f in sorted(some, key=lambda f: -f.gain))}"
            for who, some in by_client.items()
        ]

    def to_json(self) -> Json:
        return {
            **self.about,
            "reveals": self.line,
            "findings": [f.to_json() for f in self.findings],
            "sentences": self.sentences(),
            "remedy": remedy_of(self.config),
            "notes": list(self.notes),
        }


def audit(
    config: Config,
    run: Path | None = None,
    *,
    trials: int = TRIALS,
    own_rows: bool = False,
    optimise: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Measure what one client's message tells a server that is honest but curious.

    Args:
        config: whose client, channel and protections.
        run: a run of it; its parameters are then those of the later round.
        trials: messages per attack, size of client and round.
        own_rows: make messages of the configuration's own rows, not of synthetic ones.
        optimise: rebuild texts by optimisation, too (A4; minutes).
        say: told what is being done.

    Raises:
        UserError: a configuration that cannot work.
    """
    subject = subject_of(config, run, own_rows, trials, say)
    findings: list[Finding] = []
    notes: list[str] = []
    aux = Auxiliary.of(subject)
    for rows in subject.sizes:
        say(f"clients with {rows} rows: {trials} messages")
        findings += Bench.of(subject, rows, trials, aux).findings(notes)
    say("what is sent before round 1")
    findings += of_start(subject, trials)
    if optimise:
        from forefed.audit.optimise import of_texts

        findings += of_texts(subject, trials, aux, say)
    made_of = "the configuration's own rows" if own_rows else "synthetic rows"
    lengths = subject.rows.lengths()
    about: Json = {
        "name": config.name,
        "strategy": config.strategy.name,
        "model": config.model.name,
        "rows": made_of,
        "tokens": int(np.median(lengths)),
        "typical_rows": subject.typical,
        "classes": subject.classes,
        "trials": trials,
        "parameters": sum(subject.task.params[n].numel() for n in subject.shared),
        "clients_in_a_message": subject.group,
        "protections": protections(config),
    }
    return Audit(config, about, tuple(findings), reveals(config), tuple(dict.fromkeys(notes)))


def sender(one: Finding) -> str:
    """Whose message a finding is of."""
    if one.step == "start":
        rows = f"{one.client.rows:,} row{'' if one.client.rows == 1 else 's'}"
        return f"of a client with {rows}, what is sent before round 1 tells"
    return f"of a client with {one.client}, one message tells"


def said(one: Finding) -> str:
    """What was learnt, and how surely."""
    if one.measure == "cosine":
        return f"{one.attack} (cosine {one.value:.2f})"
    return f"{one.attack} ({one.value:.0%} of {one.trials}; a guess {one.chance:.0%})"
