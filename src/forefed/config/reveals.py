"""What one message of a configuration reveals by construction, without measuring anything.

A static rule: what the server reads of a single client, what that tells of the smallest one, and
what stands in between. It is printed where a run is checked and before a deployment's first round;
``forefed audit`` measures the same.
"""

from __future__ import annotations

from forefed.config.config import Config
from forefed.start import ClosedForm, start_of, words_of


def protections(config: Config) -> list[str]:
    """What of the configuration keeps a curious server from reading a single client exactly."""
    found = []
    if config.channel.hides:
        least = config.channel.least
        found.append(f"a secure sum, of {least} clients at least, which hides whose part is whose")
    found += [
        f"noise of '{m.kind}' in every client's own steps"
        for m in config.modifiers
        if m.private and m.per_example
    ]
    if config.start.private and getattr(config.start, "noise_by", "server") == "clients":
        found.append("noise in the sums before round 1, of which every client adds its share")
    return found


def solved(config: Config) -> ClosedForm | None:
    """How the head is solved before round 1, as far as the settings tell."""
    return start_of(config, config.model.pooling)


def reveals(config: Config) -> str:
    """One line for a person who is about to start the run."""
    classes = config.data.task.head == "classification"
    size, steps = config.client.batch_size, config.client.max_steps
    if config.codec.sends_slopes:
        read = "the slopes of each client, which are measurements of its gradient"
    else:
        read = "what each client's training changed"
    if size == 1 and steps == 1:
        least = "every message is one step of batch 1: it"
    else:
        least = "one step of batch 1 (a client with one row)"
    tells = "tells the label and confirms a guess" if classes else "confirms a guess at its text"
    who = "an aggregator (without one the server)" if config.channel.sums else "the server"
    parts = [f"{who} reads {read}; {least} {tells}"]
    if config.channel.hides:
        parts = [
            "the server reads sums over groups of clients; who knows all others of a group reads "
            "the last one"
        ]
    start = solved(config)
    if start is not None:
        if classes:
            counts, alone = "counts of its classes", "a row that is alone in its class"
        else:
            counts, alone = "sums of its targets", "a row that is its only one"
        features = f", and the features of {alone}" if start.min_count == 1 else ""
        words = ""
        if words_of(config, config.model.pooling):
            words = ", and in how many rows each word and each pair of words is"
        if config.channel.hides:
            sums = counts.replace("its", "the")
            parts.append(f"before round 1 such sums tell the {sums}{words}")
        else:
            parts.append(f"before round 1 each client sends the {counts}{features}{words}")
    if told := config.sharing.reveals():
        parts.append(told)
    between = protections(config)
    parts.append(
        f"in between: {' and '.join(between)}"
        if between
        else "no noise and no secure sum stand in between"
    )
    parts += [
        f"the noise of '{m.kind}' is the server's own and protects from everybody else"
        for m in config.modifiers
        if m.private and not m.per_example
    ]
    if start is not None and start.private and start.noise_by == "server":
        parts.append("the noise of 'start' is the server's own and protects from everybody else")
    return f"what one message reveals: {'; '.join(parts)} ('forefed audit' measures it)"


def remedy_of(config: Config) -> list[str]:
    """What would lower it, of what is in the product; the first weighs most."""
    said = []
    steps, size = config.client.max_steps, config.client.batch_size
    if steps == 1 or size == 1:
        said.append("more local steps and larger batches (client.max_steps, client.batch_size)")
    said.append(
        "no client of few rows: policy.min_examples at the sites, partition.min_size in a rehearsal"
    )
    said.append("no loss beside the update: policy.metrics without 'loss' at the sites")
    start = solved(config)
    if start is not None:
        if words_of(config, config.model.pooling):
            said.append("start.words = 0, without which the words of a client are no secret")
        few = "start.min_count = 5, or " if start.min_count < 5 else ""
        said.append(f"{few}start.kind = 'none', which sends no sums")
    said.append("none of these bounds what is learnt: only noise with an account of it does")
    return said
