"""What a run promises of its clients' data, before it starts, while it runs and afterwards.

A statement names the mechanism, the unit, (epsilon, delta), the adversary and the participation
cap: a run that cannot name one of them says nothing of privacy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forefed.core.errors import UserError
from forefed.core.types import Json
from forefed.modifiers import Private
from forefed.privacy import Release, capped, epsilon
from forefed.run.config import Config
from forefed.start import ClosedForm
from forefed.start.private import planned as of_start


def private_of(config: Config) -> tuple[Private, ...]:
    """The modifiers that make a run private."""
    return tuple(m for m in config.modifiers if isinstance(m, Private))


def private_start(config: Config) -> ClosedForm | None:
    """The start, if its sums have noise."""
    start = config.start
    return start if isinstance(start, ClosedForm) and start.private else None


def check_units(config: Config, members: int) -> None:
    """What can be said of delta and of participation once the population is known.

    Raises:
        UserError: a delta that publishing one unit whole keeps to, or a cap that leaves nobody to
            draw.
    """
    start = private_start(config)
    if start and start.unit == "client" and start.delta >= 1 / members:
        raise UserError(
            f"start.delta = {start.delta:g} with {members} clients: whoever published all rows of "
            f"one client would keep to it; set it below 1/{members}"
        )
    for modifier in private_of(config):
        if modifier.unit == "client" and modifier.delta >= 1 / members:
            raise UserError(
                f"modifiers: '{modifier.kind}' with delta = {modifier.delta:g} and {members} "
                "clients: whoever published all rows of one client would keep to it; set delta "
                f"below 1/{members}, better {1 / (10 * members):.1g}"
            )
        cap = modifier.participation
        if cap is not None and config.rounds * config.cohort > cap * members:
            raise UserError(
                f"modifiers: '{modifier.kind}' with participation = {cap}: {members} clients are "
                f"spent after {cap * members // config.cohort} rounds of {config.cohort}; raise "
                "participation, or lower rounds or cohort"
            )


def delta_of(config: Config) -> float:
    """The delta at which a run's costs are told."""
    deltas = [m.delta for m in private_of(config)]
    start = private_start(config)
    return min(deltas + ([start.delta] if start else []), default=1e-5)


def statements(releases: Iterable[Release], delta: float, rehearsal: bool) -> list[Json]:
    """What these releases cost, one statement for each unit of privacy."""
    found = []
    made = list(releases)
    for unit in ("client", "example"):
        some = [r for r in made if r.unit == unit]
        if not some:
            continue
        caps = [r.cap for r in some if r.cap is not None]
        statement: Json = {
            "mechanism": " and ".join(dict.fromkeys(r.mechanism for r in some)),
            "unit": unit,
            "epsilon": float(f"{epsilon(capped(some), delta):.4g}"),
            "delta": delta,
            "adversary": "; ".join(dict.fromkeys(r.adversary for r in some)),
            "cap": min(caps) if len(caps) == len(some) else None,
            "rounds": len({r.round for r in some}),
            "releases": sum(r.count for r in some),
            "noise_multiplier": sorted({float(f"{r.sigma:.6g}") for r in some}),
            "q": sorted({float(f"{r.q:.6g}") for r in some}),
            "rehearsal": rehearsal,
        }
        found.append({**statement, "text": sentence(statement)})
    return found


def sentence(statement: Json) -> str:
    """A statement in words."""
    cap = statement["cap"]
    rounds = f"at most {cap} rounds" if cap is not None else "every round"
    q = statement["q"]
    drawn = "" if q == [1.0] else f", drawn in secret with probability {' or '.join(map(str, q))}"
    text = (
        f"({statement['epsilon']:.3g}, {statement['delta']:g})-differential privacy of every "
        f"{statement['unit']} ({statement['mechanism']} noise, multiplier "
        f"{' and '.join(f'{x:g}' for x in statement['noise_multiplier'])}; each takes part in "
        f"{rounds}{drawn}), against {statement['adversary']}"
    )
    if statement["rehearsal"]:
        text += ". This is a rehearsal, whose noise follows from the seed: it protects nobody yet"
    return text


def planned(config: Config, members: int) -> list[Release]:
    """What a whole run will let out at most, of which one unit is part."""
    start = private_start(config)
    return [
        *([of_start(start)] if start else []),
        *(
            release
            for m in private_of(config)
            for release in m.solved(config, members).planned(config, members)
        ),
    ]


def notes(config: Config, members: int, rehearsal: bool) -> Sequence[str]:
    """What a person should know before the first round."""
    mine = private_of(config)
    if not mine and private_start(config) is None:
        return ()
    texts = []
    for statement in statements(planned(config, members), delta_of(config), rehearsal):
        texts.append(f"the whole run will cost {statement['text']}")
    unprotected = [m.kind for m in mine if m.noise_multiplier == 0]
    if unprotected:
        texts.append(f"modifiers: '{unprotected[0]}' without noise bounds and hides nothing")
    if mine and config.start.kind == "auto" and not config.start.private:
        texts.append("start = 'auto' does not ask for sums of features, as they have no noise")
    if mine and config.guard.kind == "auto":
        texts.append(
            "guard = 'auto' does not ask for losses of held-out rows, as they have no noise"
        )
    for m in mine:
        if m.unit == "client" and m.delta > 1 / (10 * members):
            texts.append(
                f"delta = {m.delta:g} is large for {members} clients; 1/(10 clients) = "
                f"{1 / (10 * members):.1g} is usual"
            )
    return texts
