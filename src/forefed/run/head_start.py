"""Before round 1: the head in closed form from all clients' sums (``forefed.start``).

server  asks everybody in how many rows each word is  -> the words that count
server  asks everybody for sums                       -> a few candidate heads
server  asks everybody for products, a few times      -> what the words say of classes
server  asks everybody to try heads and words         -> those with the best held-out answers

After the last round, where no adapter has moved, the same once more with all rows (``finish``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from forefed.core.errors import ProtocolError, UserError
from forefed.core.files import read_table, write_atomic, write_json
from forefed.core.keys import Secret
from forefed.core.types import Json, Params, Transport, drawn_from
from forefed.federation.questions import PLAIN, Heard, Question, Way, ask, ask_total
from forefed.models.task import Task
from forefed.models.words import BUCKETS, Bag, Words
from forefed.privacy import Release
from forefed.run.record import AGAIN, START
from forefed.start import ClosedForm
from forefed.start.answer import ALL, HELD_OUT, TRAINING, about
from forefed.start.closed_form import SCALES, SHARES, Head, Solver, choose, choose_share
from forefed.start.features import names_of_head
from forefed.start.private import private_sums
from forefed.start.sums import Sums
from forefed.start.words import STEPS, kept, solved, whole

TENSORS = "start.safetensors"
Say = Callable[[str, int, int], None]
"""Told what is done, how many clients have answered, and of how many."""


@dataclass(frozen=True)
class Begun:
    """What the start came to: the head's parameters, the sums of all clients, what the words add
    (None: nothing), and its record."""

    head: Params
    total: Sums
    line: Json
    words: Words | None = None

    @property
    def notes(self) -> list[str]:
        return list(self.line["notes"])

    @property
    def finished(self) -> bool:
        """Is it solved from all rows, held-out ones too?"""
        return bool(self.line.get("all_rows"))

    def save(self, folder: Path) -> None:
        """Writes both files of a run's folder."""
        tensors = {f"head/{n}": x for n, x in self.head.items()}
        tensors |= {f"sums/{n}": x for n, x in vars(self.total).items()}
        if self.words is not None:
            tensors |= {f"words/{n}": x for n, x in self.words.packed().items()}
        write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
        write_json(folder / START, self.line)


def load_begun(folder: Path) -> Begun | None:
    """What a run began with; None: as its model came.

    Raises:
        UserError: a file of it is damaged or missing.
    """
    path = folder / TENSORS
    if not path.is_file():
        return None
    parts: dict[str, Params] = {"head": {}, "sums": {}, "words": {}}
    try:
        for name, x in safetensors.torch.load_file(path).items():
            part, _, own = name.partition("/")
            parts[part][own] = x
        total = Sums(**parts["sums"])
        words = Words.unpacked(parts["words"]) if parts["words"] else None
    except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); {AGAIN}") from None
    return Begun(parts["head"], total, read_table(folder / START, AGAIN), words)


@dataclass
class Asked:
    """Questions of one start: who still answers, and what they have cost."""

    task: Task
    transport: Transport
    deadline_s: float | None
    members: Sequence[int]
    say: Say = lambda what, done, of: None
    way: Way = PLAIN
    bytes_up: int = 0
    bytes_down: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    """Why a sum was abandoned."""
    when: str = "start"
    questions: int = 0

    def total(
        self,
        kind: str,
        what: str,
        tensors: Params,
        shapes: dict[str, tuple[int, ...]],
        read: Callable[[Params], Params],
    ) -> tuple[tuple[int, ...], Params]:
        """Put a question to those who have answered so far.

        Args:
            what: is being done, for whoever waits.
            shapes: of the answer's whole numbers.
            read: these numbers, of one answer as it travels.

        Returns:
            Who has answered, and the sum.
        """
        total = {n: torch.zeros(shape, dtype=torch.int64) for n, shape in shapes.items()}
        done, members = 0, list(self.members)

        def take(_: int, answer: Params) -> None:
            nonlocal done, total
            numbers = read(answer)
            total = {n: x + numbers[n] for n, x in total.items()}
            done += 1
            self.say(what, done, len(members))

        question = self._question(kind, tensors)
        heard = ask(self.transport, question, take, shapes, self._anew())
        if self.way.channel.sums:
            total = heard.total or total
            self.reason = heard.reason
            self.say(what, len(heard.clients), len(members))
        self._spent(heard)
        return heard.clients, total

    def losses(
        self, tensors: Params, what: str, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[tuple[int, ...], Params]:
        """The sum of held-out losses under heads, float64, and who has answered; no tensors where
        nobody did."""
        of = len(self.members)
        heard, total = ask_total(
            self.transport,
            self._question("heads", tensors),
            shapes,
            self._anew(),
            lambda done: self.say(what, done, of),
        )
        self._spent(heard)
        return heard.clients, total

    def bag(self, most: int) -> Bag:
        """The words that count."""

        def read(answer: Params) -> Params:
            n = answer.get("n", torch.tensor(-1))
            if n.numel() != 1 or int(n) < 0:
                raise ProtocolError("rows were not counted")
            return {"documents": whole(answer, "documents", BUCKETS, 1), "n": n.long().reshape(())}

        shapes = {"documents": (BUCKETS, 1), "n": ()}
        self.members, found = self.total("documents", "counting words", {}, shapes, read)
        return kept(found["documents"][:, 0], int(found["n"]), most)

    def sums(self, rows: int) -> Sums:
        """Sums of features."""
        classes, width = self.task.params[names_of_head(self.task)[0]].shape
        shapes = {n: tuple(x.shape) for n, x in vars(Sums.zero(classes, width)).items()}

        def read(answer: Params) -> Params:
            return vars(Sums.unpacked(answer, classes, width))

        asked = {"rows": torch.tensor(rows)}
        self.members, found = self.total("sums", "reading texts", asked, shapes, read)
        total = Sums(**found)
        total.check()
        return total

    def words(self, bag: Bag, chances_C: Tensor, rows: int) -> Words | None:
        """What the bag says of each class; it ends early where somebody is lost. None: there is no
        word, or not everybody answers."""
        size = (len(bag), len(chances_C))
        asked = {**_packed(bag), "rows": torch.tensor(rows)}

        def summed(kind: str, what: str, tensors: Params) -> Tensor | None:
            def read(answer: Params) -> Params:
                return {kind: whole(answer, kind, *size)}

            clients, found = self.total(kind, what, tensors, {kind: size}, read)
            return found[kind] if set(clients) == set(self.members) else None

        by_class = summed("words", "summing words", asked) if len(bag) else None
        if by_class is None:
            return None
        step = 0

        def image(sent: Tensor) -> Tensor | None:
            nonlocal step
            step += 1
            what = f"weighing words, pass {step}/{STEPS}"
            return summed("products", what, {**asked, "p": sent})

        return Words(bag, solved(by_class, chances_C, image).float())

    def _question(self, kind: str, tensors: Params) -> Question:
        return Question(kind, about(self.task), tensors, 0, list(self.members), self.deadline_s)

    def _anew(self) -> Way:
        self.questions += 1
        return self.way.anew(self.when, self.questions)

    def _spent(self, heard: Heard) -> None:
        self.bytes_up += heard.bytes_up
        self.bytes_down += heard.bytes_down
        self.lost |= {r: self.lost.get(r, 0) + n for r, n in heard.lost.items()}


def begin(
    start: ClosedForm,
    task: Task,
    transport: Transport,
    deadline_s: float | None,
    words: int = 0,
    say: Say = lambda what, done, of: None,
    way: Way = PLAIN,
    secret: Secret | None = None,
    enter: Callable[[Sequence[Release]], None] = lambda _: None,
) -> Begun:
    """Ask, solve, try, choose.

    Args:
        words: that count beside the features at most; 0: none.
        say: told of progress.
        way: in which answers come.
        secret: what the noise of a private start is drawn from.
        enter: writes down what is released, before anything is made of it.

    Raises:
        UserError: rows from which no head can be made, or nobody answers.
    """
    clock = time.perf_counter()
    asked = Asked(task, transport, deadline_s, list(transport.members()), say, way)
    bag = asked.bag(words) if words else None
    total = asked.sums(TRAINING)
    if asked.reason:
        raise UserError(f"start: {asked.reason}; see to that, or set start.kind = 'none'")
    if not asked.members:
        raise UserError(
            f"start: no client answered with sums ({_reasons(asked.lost)}); see to that, or set "
            "start.kind = 'none'"
        )
    if start.private:
        total, release = private_sums(start, total, drawn_from(secret))
        enter([release])
    solver = Solver.of(total, task.label_names)
    said = None if bag is None else asked.words(bag, total.chances(), TRAINING)
    head, chosen_words, chosen = solve(start, task, solver, asked, said)
    line: Json = {
        **chosen,
        "clients": len(asked.members),
        "lost": asked.lost,
        "examples": total.rows,
        "features": len(total.x),
        "words": 0 if chosen_words is None else len(chosen_words.bag),
        "bytes_up": asked.bytes_up,
        "bytes_down": asked.bytes_down,
        "forwards": float(total.rows + chosen["held_out"]),
        "seconds": round(time.perf_counter() - clock, 3),
    }
    return Begun(head, total, line, chosen_words)


def finish(
    begun: Begun,
    start: ClosedForm,
    task: Task,
    transport: Transport,
    deadline_s: float | None,
    say: Say = lambda what, done, of: None,
    way: Way = PLAIN,
) -> Begun:
    """The same solver, regularisation, scale and words from all rows, held-out ones too.

    Where somebody who has answered before does not any more, it stays as it was.
    """
    clock = time.perf_counter()
    members = list(transport.members())
    asked = Asked(task, transport, deadline_s, members, say, way, when="end")
    line = begun.line
    held_out = asked.sums(HELD_OUT)
    total = begun.total.plus(held_out)
    said = None
    if begun.words is not None:
        found = asked.words(begun.words.bag, total.chances(), ALL)
        if found is not None:
            said = _scaled(found, line)
    if len(asked.members) < line["clients"] or (said is None) != (begun.words is None):
        text = "somebody was missing when the head was to be solved from all rows"
        return replace(begun, line={**line, "notes": [*line["notes"], text]})
    head = Solver.of(total, task.label_names).solve(
        line["solver"], line["regularisation"], start.prior
    )
    line = {
        **line,
        "all_rows": True,
        "examples": total.rows,
        "bytes_up": line["bytes_up"] + asked.bytes_up,
        "bytes_down": line["bytes_down"] + asked.bytes_down,
        "forwards": line["forwards"] + held_out.rows,
        "seconds": round(line["seconds"] + time.perf_counter() - clock, 3),
    }
    return Begun(params_of(task, head.times(line["scale"])), total, line, said)


def words_again(
    begun: Begun, task: Task, transport: Transport, members: Sequence[int], total: Sums, most: int
) -> Words | None:
    """What the words of these clients alone say; None where none counted."""
    if begun.words is None:
        return None
    asked = Asked(task, transport, None, members)
    found = asked.words(asked.bag(most), total.chances(), ALL if begun.finished else TRAINING)
    return None if found is None else _scaled(found, begun.line)


def solve(
    start: ClosedForm, task: Task, solver: Solver, asked: Asked, said: Words | None
) -> tuple[Params, Words | None, Json]:
    """The head of these sums; held-out rows of the clients choose among candidates.

    Returns:
        The head, the words' part (None: they do not help), and the record of it.
    """
    candidates = start.candidates()
    heads = [solver.solve(kind, share, start.prior) for kind, share in candidates]
    stacked = {
        "weight": torch.stack([h.weight_CD for h in heads]).float(),
        "bias": torch.stack([h.bias_C for h in heads]).float(),
    }
    if said is not None:
        stacked |= {**_packed(said.bag), "said": said.weight}
    shares = 1 if said is None else len(SHARES)
    each = (len(heads), shares, len(SCALES))
    shapes = {"loss": each, "flat": each, "correct": each[:2], "n": ()}
    tried: Params = {}
    if not start.private:  # losses of held-out rows would have no noise
        _, tried = asked.losses(stacked, "trying heads on held-out rows", shapes)
    answered = bool(tried)
    tried["classes"] = torch.tensor(float(len(task.label_names)))
    notes = list(solver.notes)
    position, scale, table = _middle(candidates), 1.0, list[Json]()
    by_share, share, together = list[Json](), 0.0, 1.0
    if answered and float(tried["n"]):
        alone = {**tried, **{n: tried[n][:, 0] for n in ("loss", "flat", "correct")}}
        position, scale, table = choose(alone, candidates)
        if said is not None:
            own = {**tried, **{n: tried[n][position] for n in ("loss", "flat", "correct")}}
            at, with_words, by_share = choose_share(own)
            share = SHARES[at]
            together = with_words if share else scale
    elif len(candidates) > 1:
        notes.append("no client holds rows out, so the head's regularisation was not chosen")
    kind, regularisation = candidates[position]
    line: Json = {
        "kind": "closed_form",
        "solver": kind,
        "regularisation": regularisation,
        "scale": scale,
        "share": share,
        "scale_with_words": together,
        "held_out": int(tried["n"]) if answered else 0,
        "tried": table,
        "shares": by_share,
        "notes": notes,
        **({"private": True} if start.private else {}),
    }
    words = _scaled(said, line) if said is not None and share else None
    return params_of(task, heads[position].times(scale)), words, line


def _scaled(said: Words, line: Json) -> Words:
    """The words' part as it is added to a head of ``scale``."""
    together = line["scale_with_words"]
    return Words(said.bag, said.weight * (together * line["share"]), together / line["scale"])


def _packed(bag: Bag) -> Params:
    return {"buckets": bag.buckets, "idf": bag.idf}


def params_of(task: Task, head: Head) -> Params:
    """The head as the task's parameters."""
    weight, bias = names_of_head(task)
    return {
        weight: head.weight_CD.to(task.params[weight]),
        bias: head.bias_C.to(task.params[bias]),
    }


def _middle(candidates: Sequence[tuple[str, float]]) -> int:
    return min(range(len(candidates)), key=lambda i: abs(candidates[i][1] - 0.1))


def _reasons(lost: dict[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in lost.items()) or "there is none"
