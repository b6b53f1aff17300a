"""A site's own privacy budget: what it has let out, over all runs and servers, and its cap.

The site counts for itself. Of an order it believes that the server adds the noise which it names
(``dp_client``), or adds its own (``dp_example``); that others could not know who was drawn it does
not believe, so a round in which it takes part counts whole. Where it believes no server
(``policy.own_noise``), that noise counts which it adds itself, or of which it adds a share
(``start.noise_by = "clients"``): that others add theirs is what is left to believe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from forefed.config.config import Config
from forefed.deploy.settings import Policy, Refusal
from forefed.modifiers import DpClient, DpExample
from forefed.privacy import Ledger, Release, epsilon
from forefed.start import ClosedForm
from forefed.start.private import planned as of_start


def of_order(config: Config, own_noise: bool = False) -> list[Release]:
    """What one round of these settings lets out of a site that takes part; empty: all.

    Args:
        own_noise: the server's noise is none.

    Raises:
        Refusal: noise that only the server can work out.
    """
    found: list[Release] = []
    for m in config.modifiers:
        if isinstance(m, DpClient) and not own_noise:
            own = m.solved(config, config.cohort if config.select.kind == "uniform" else None)
            if m.target_epsilon is not None and config.select.kind != "uniform":
                raise Refusal("the noise is not named; order it by noise_multiplier, not a target")
            found += [replace(r, q=1.0, cap=None) for r in own.planned(config, 1)[:1]]
        if isinstance(m, DpExample):
            own = m.solved(config, None)
            found += [replace(r, cap=None) for r in own.planned(config, 1)[:1]]
    return found


def of_question(config: Config, kind: str, own_noise: bool = False) -> list[Release]:
    """The same for a question beside training."""
    start = config.start
    if kind != "sums" or not isinstance(start, ClosedForm) or not start.private:
        return []
    return [] if own_noise and start.noise_by == "server" else [of_start(start)]


def spend(
    folder: Path, policy: Policy, releases: Sequence[Release], round: int, task: str
) -> list[Release]:
    """Write down what is about to leave, if the policy allows it.

    Args:
        task: names the order or question: the same one asked again costs nothing more.

    Returns:
        What was entered.

    Raises:
        Refusal: no noise (of this site's own), where the policy has a cap; or a cap that it would
            pass.
    """
    if policy.max_epsilon is None:
        return []
    if not releases and policy.own_noise:
        raise Refusal("what is asked for has no noise of this site's own (policy.own_noise)")
    if not releases:
        raise Refusal("what is asked for has no noise, and this site has a privacy budget")
    ledger = Ledger.of(folder)
    new = [replace(r, round=round, tag=task) for r in releases]
    known = {(r.unit, r.round, r.tag) for r in ledger.made}
    fresh = [r for r in new if (r.unit, r.round, r.tag) not in known]
    for unit in dict.fromkeys(r.unit for r in fresh):
        whole = [r for r in (*ledger.made, *fresh) if r.unit == unit]
        cost = epsilon(whole, policy.delta)
        if not cost <= policy.max_epsilon:
            raise Refusal(
                f"this site's privacy budget: epsilon would be {cost:.3g} at delta = "
                f"{policy.delta:g} for every {unit}, at most {policy.max_epsilon:g} "
                "(policy.max_epsilon)"
            )
    ledger.enter(fresh)
    return fresh
