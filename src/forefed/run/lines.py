"""One round as the record keeps it, and what a person should know about it."""

from __future__ import annotations

from forefed.config.config import SLOTS, Config, chosen
from forefed.core.types import Json
from forefed.federation.outliers import outlying
from forefed.federation.report import RoundReport, losses_by_reason
from forefed.gradients.memory import resident_bytes
from forefed.run.client_engines import Engines


def notices(line: Json, config: Config, cache_stopped: str) -> list[str]:
    """What a person should know about a round; each text is said once in a run."""
    texts = []
    if cache_stopped:
        texts.append(f"the prefix cache keeps no more examples: {cache_stopped}")
    if line["steps"] and line["skipped"] == line["steps"]:
        float16 = config.model.dtype == "float16"
        remedy = (
            "float16 overflows: set model.dtype = 'bfloat16'"
            if float16
            else "lower client.optimiser.lr"
        )
        texts.append(f"no step had a finite result, so nothing moves; {remedy}")
    for client, what in outlying(line.get("contributions", [])).items():
        texts.append(f"round {line['round']}: the contribution of client {client} {what}")
    if line["fallbacks"]:
        names = ", ".join(line["fallbacks"])
        texts.append(f"operators without a rule, computed one by one and slowly: {names}")
    return texts


FALLBACK = "fallback/"
"""Prefix of the metrics that count operators without a rule (``gradients.dual``)."""


def round_line(report: RoundReport, seconds: dict[str, float]) -> Json:
    """One round as the record keeps it."""

    def total(metric: str) -> float:
        return sum(u.metrics.get(metric, 0.0) for u in report.updates)

    peaks = [u.metrics["peak_bytes"] for u in report.updates if "peak_bytes" in u.metrics]
    fallbacks = {name for u in report.updates for name in u.metrics if name.startswith(FALLBACK)}
    return {
        "round": report.round,
        "loss": report.loss,
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "forwards": total("forwards"),
        "memory": {
            "peak_above_weights": int(max(peaks)) if peaks else None,
            "rss": resident_bytes(),
        },
        "cohort": list(report.cohort),
        "replies": len(report.heard),
        "examples": sum(u.n_examples for u in report.updates),
        "lost": losses_by_reason(report),
        "why": {x.reason: x.detail[:200] for x in reversed(report.lost) if x.detail},
        "steps": int(total("steps")),
        "skipped": int(total("skipped")),
        "clamped": int(total("clamped")),
        **({"saturated": int(total("saturated"))} if total("saturated") else {}),
        "metrics": dict(report.metrics),
        "contributions": [dict(c) for c in report.contributions],
        "pending": report.pending,
        "abandoned": report.abandoned,
        "fallbacks": {n.removeprefix(FALLBACK): int(total(n)) for n in sorted(fallbacks)},
    }


def memory_groups(report: RoundReport, engines: Engines) -> Json:
    """The cohort's groups of ``plan.json``, and the measured peak above the weights by group."""
    peaks: dict[str, int] = {}
    for update in report.updates:
        if "peak_bytes" in update.metrics:
            peaks[str(engines.group(update.client))] = int(update.metrics["peak_bytes"])
    return {"cohort": [engines.group(c) for c in report.cohort], "peaks": peaks}


def choices(config: Config) -> list[Json]:
    """What stands in every slot, with its question and what the entry says of itself."""
    return [
        {"slot": place, "question": slot.question, "kind": one.kind, "about": one.summary()}
        for place, slot in SLOTS.items()
        for one in chosen(config, place)
    ]


def protects(config: Config) -> list[Json]:
    """What of the configuration stands between a client's rows and others, or between the model
    and hostile clients; who reads the record is told."""
    found: list[tuple[str, str]] = []
    if config.channel.hides:
        found.append(("secure sum", config.channel.told()))
    found += [(f"noise ({m.kind})", m.summary()) for m in config.modifiers if m.private]
    if config.start.private:
        found.append(("noise (start)", "Gaussian noise on the sums that the head is solved from."))
    if config.aggregator.individual:
        found.append((f"robust rule ({config.aggregator.kind})", config.aggregator.summary()))
    return [{"what": what, "text": text} for what, text in found]
