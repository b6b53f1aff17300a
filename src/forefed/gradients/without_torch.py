"""What of a run's settings a client without torch (forefed.slim) cannot do."""

from __future__ import annotations

from typing import Any

from forefed.slim.codecs import CODECS


def why_not(config: Any, deployed: bool = False) -> list[str]:
    """Each such setting of a configuration, with its remedy.

    Args:
        deployed: is it a site, which nobody else answers questions for?
    """
    engine, client, found = config.engine, config.client, list[str]()
    optimiser, start = client.optimiser, config.start
    if engine.kind != "finite_difference" or engine.sub_batches > 1 or engine.emulates:
        found.append("engine: it has losses alone; set engine.kind = 'finite_difference'")
    elif engine.head != "perturbed" and getattr(start, "then", "") != "frozen":
        found.append(
            "engine.head: it has no gradient of the head; set engine.head = 'perturbed', or "
            "start.then = 'frozen'"
        )
    if config.directions.kind != "fresh":
        found.append("directions.kind: set 'fresh'")
    if config.codec.kind not in CODECS:
        found.append(f"codec.kind: set {' or '.join(map(repr, CODECS))}")
    if optimiser.kind != "sgd" or not (client.linear and optimiser.steady):
        found.append(
            "client.optimiser: its steps are plain; set kind = 'sgd' without momentum, weight "
            "decay and schedule"
        )
    if client.sampler.kind != "shuffled":
        found.append("client.sampler: set 'shuffled'")
    if config.download.by_records or config.channel.sums or config.modifiers:
        found.append("download, channel, modifiers: leave them as they are by default")
    if config.sharing.kind != "everything" or getattr(config.adapter, "dropout", 0.0) > 0:
        found.append("sharing, adapter.dropout: leave them as they are by default")
    if config.model.dtype != "float32" or config.model.quantise != "none":
        found.append("model.dtype, model.quantise: a graph has float32 weights; set 'float32'")
    if start.kind != "none" and getattr(start, "words", "auto") != 0:
        found.append("start.words: its graph has logits of the model alone; set 0, or start 'none'")
    if getattr(start, "folds_rate", 1.0) != 1:
        found.append("start.folds_rate: it has one rate; set 1")
    if deployed and (start.kind != "none" or config.guard.kind != "none"):
        found.append("start, guard: it answers no questions about its rows; set both to 'none'")
    if not deployed and config.partition.kind == "sites":
        found.append(
            "partition: a rehearsal has no sites; for a site of a deployment 'forefed site graph' "
            "writes its folder"
        )
    if config.attack.kind != "none" or config.workers != 1:
        found.append("attack, workers: rehearse without attacks, workers = 1")
    if config.data.task.kind != "classification":
        found.append("data.task.kind: set 'classification'")
    return found
