"""What a run promises of its clients' data, before it starts, while it runs and afterwards.

A statement names the mechanism, the unit, (epsilon, delta), the adversary and the participation
cap: a run that cannot name one of them says nothing of privacy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forefed.config.config import Config
from forefed.core.errors import UserError
from forefed.core.types import Json
from forefed.modifiers import Private
from forefed.privacy import Release, capped, epsilon
from forefed.start import ClosedForm, NoStart
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
    cap, q = statement["cap"], statement["q"]
    rounds = f"at most {cap} rounds" if cap is not None else "every round"
    part = f"each takes part in {rounds}"
    if q != [1.0]:
        chance = " or ".join(f"{x:g}" for x in q)
        steps = "every step of " if statement["unit"] == "example" else ""
        part = f"each is drawn in secret with probability {chance} in {steps}{rounds}"
    text = (
        f"({statement['epsilon']:.3g}, {statement['delta']:g})-differential privacy of every "
        f"{statement['unit']} ({statement['mechanism']} noise, multiplier "
        f"{' and '.join(f'{x:g}' for x in statement['noise_multiplier'])}; {part}), against "
        f"{statement['adversary']}"
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


def noise_plan(config: Config, target: float, delta: float | None) -> list[str]:
    """The noise with which a whole run costs ``target`` at most, as lines for a person.

    Args:
        delta: None: as the configuration has it.

    Raises:
        UserError: nothing private in the configuration, a population that only its rows tell, or
            no noise that reaches the target.
    """
    mine, start = private_of(config), private_start(config)
    if not mine and start is None:
        raise UserError(
            "--epsilon: this configuration is not private; give it the modifier 'dp_client' or "
            "'dp_example', or start.noise_multiplier"
        )
    members = getattr(config.partition, "clients", None)
    names = getattr(config.partition, "names", None)
    members = len(names) if names else members
    if members is None and config.select.kind == "poisson":
        raise UserError(
            f"--epsilon: with partition.kind = '{config.partition.kind}' only the rows tell how "
            "many clients there are; set partition.clients, or run 'forefed check'"
        )
    lines = []
    changes = {"noise_multiplier": None, "target_epsilon": target}
    changes |= {} if delta is None else {"delta": delta}
    population = members or config.cohort
    for m in mine:
        solved = m.model_copy(update=changes).solved(config, population)
        assert isinstance(solved, Private)
        one = config.model_copy(update={"modifiers": (solved,), "start": NoStart()})
        check_units(one, population if members else 2**62)
        (statement,) = statements(solved.planned(one, population), solved.delta, False)
        where = f"modifiers: '{m.kind}' with noise_multiplier = {solved.noise_multiplier:.4g}"
        lines.append(f"{where}: {statement['text']}")
    if start is not None:
        solved_start = start.model_copy(update=changes)
        release = of_start(solved_start)
        (statement,) = statements([release], solved_start.delta, False)
        lines.append(f"start.noise_multiplier = {release.sigma:.4g}: {statement['text']}")
    if len(lines) > 1:
        lines.append("each alone; together they cost more, as the first lines of a run say")
    return lines
