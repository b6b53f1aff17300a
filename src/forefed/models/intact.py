"""Is a checkpoint whole, and the one that its configuration describes?

Only what a run trains itself may be drawn at random: the head, and a pooler that belongs to a head
which was never trained. Anything else that is missing would be noise that nobody trains.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from forefed.core.errors import UserError
from forefed.models.attach import head_modules
from forefed.models.inspect import Facts
from forefed.models.objectives import Objective

ABSURD = 1e5
"""No weight of a working model is as large; bits that are no numbers are, as a rule."""
_COMPUTED = (
    *("position_ids", "token_type_ids", "inv_freq", "masked_bias"),
    *(".attn.bias", ".attention.bias", ".attention.masked_bias"),
)
"""Endings of what older versions stored though it follows from the configuration."""


def judge(model: Any, report: dict[str, Any], objective: Objective, facts: Facts) -> set[str]:
    """The names of the tensors that the checkpoint lacks and a run may draw.

    Args:
        model: as it was loaded, or its shape alone (on torch's device "meta").
        report: of missing, mismatched and unexpected tensors, as transformers makes it.

    Raises:
        UserError: the checkpoint is not whole, or of another shape than its configuration says.
    """
    where = f"model.name: '{facts.name}'"
    shapes = {name: (tuple(there), tuple(said)) for name, there, said in report["mismatched_keys"]}
    missing = {*report["missing_keys"], *shapes}
    drawn = missing & _trainable(model, missing, objective)
    wrong = sorted(shapes.keys() - drawn)
    if wrong:
        there, said = shapes[wrong[0]]
        raise UserError(
            f"{where}: the weights have '{wrong[0]}' with shape {there}, and config.json makes it "
            f"{said}{_more(wrong)}; the two are of different models, or one was changed"
        )
    lost = sorted(missing - drawn)
    foreign = sorted(_foreign(model, report["unexpected_keys"], facts))
    if lost:
        known = dict(model.named_parameters()) | dict(model.named_buffers())
        shape = f" {tuple(known[lost[0]].shape)}" if lost[0] in known else ""
        other = sorted(n for n in report["unexpected_keys"] if not n.endswith(_COMPUTED))
        instead = f", but '{other[0]}'{_more(other)}" if other else ""
        raise UserError(
            f"{where}: the weights have no '{lost[0]}'{shape}{_more(lost)}{instead}; they are "
            "damaged, or of another architecture than config.json says. It would be noise, so "
            "nothing is trained"
        )
    if foreign:
        shape = f" {facts.tensors[foreign[0]].shape}" if foreign[0] in facts.tensors else ""
        raise UserError(
            f"{where}: the weights have '{foreign[0]}'{shape}{_more(foreign)}, for which "
            "config.json has no place: it says fewer blocks or other parts than were trained"
        )
    return drawn


def check_values(model: Any, name: str) -> None:
    """Refuses weights that are no numbers of a trained model; names the tensor.

    Raises:
        UserError: NaN, infinite or absurdly large values, or an embedding that tells no tokens
            apart.
    """
    for tensor, x in model.named_parameters():
        if not x.is_floating_point() or not x.numel():
            continue
        low, high = (float(v) for v in x.detach().aminmax())
        largest = max(abs(low), abs(high))
        if not largest <= ABSURD:  # NaN is not
            count = int((~torch.isfinite(x.detach())).sum())
            what = f"{count} values that are NaN or infinite" if count else f"values of {largest:g}"
            raise UserError(
                f"model.name: the weights of '{name}' are damaged: '{tensor}' has {what}; fetch or "
                "save the model anew"
            )
    rows = model.get_input_embeddings().weight.detach()
    if len(rows) > 1 and bool((rows == rows[:1]).all()):
        raise UserError(
            f"model.name: the weights of '{name}' are damaged: all rows of its embedding are "
            "equal, so it tells no texts apart; fetch or save the model anew"
        )


def check_tokens(tokenizer: Any, rows: int, name: str) -> None:
    """Refuses a tokeniser whose tokens the embedding has no rows for.

    Raises:
        UserError: names the token; or there is no token but special ones.
    """
    vocabulary = tokenizer.get_vocab()
    last = max(vocabulary, key=lambda token: vocabulary[token], default="")
    if not set(vocabulary) - set(tokenizer.all_special_tokens):
        raise UserError(
            f"model.name: the tokeniser of '{name}' knows no token but its special ones; its files "
            "are missing or damaged"
        )
    if vocabulary[last] >= rows:
        what = "padding token" if vocabulary[last] == tokenizer.pad_token_id else "token"
        raise UserError(
            f"model.name: the tokeniser of '{name}' has the {what} {last!r} with number "
            f"{vocabulary[last]}, but the embedding has {rows} rows (0 to {rows - 1}); tokeniser "
            "and weights are of different models, or the embedding was not enlarged with it"
        )


def _trainable(model: Any, missing: set[str], objective: Objective) -> set[str]:
    """The tensors of the head, and of a pooler of which the checkpoint has nothing."""
    tensors = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
    modules = list(head_modules(model, objective))
    for pooler in untrained_poolers(model, missing) if objective.has_head else ():
        if all(n in missing for n in tensors if n.startswith(f"{pooler}.")):
            modules.append(pooler)
    return {n for n in tensors if any(n.startswith(f"{m}.") for m in modules)}


def untrained_poolers(model: Any, missing: Iterable[str]) -> tuple[str, ...]:
    """The model's own poolers of which something is missing."""
    lacking = tuple(missing)
    return tuple(
        name
        for name, _ in model.named_modules()
        if name.endswith(".pooler") and any(n.startswith(f"{name}.") for n in lacking)
    )


def _foreign(model: Any, unexpected: Iterable[str], facts: Facts) -> set[str]:
    """Unexpected tensors that belong into the body, or all where they are more than the model.

    Heads of other kinds, a pooler that this model has no use for, and buffers that follow from the
    configuration are none.
    """
    others = [n for n in unexpected if not n.endswith(_COMPUTED)]
    body = {name for name, _ in model.base_model.named_children()} - {"pooler"}
    prefix = f"{model.base_model_prefix}."
    inside = {n for n in others if n.removeprefix(prefix).split(".")[0] in body}
    sizes = {n: facts.tensors[n].size for n in others if n in facts.tensors}
    if sum(sizes.values()) > sum(p.numel() for p in model.parameters()):
        return set(others)
    return inside


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
