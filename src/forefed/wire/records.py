"""A round as a record: what it takes to do again what the server did.

Source: DeComFL (arXiv 2405.15861), where a client that returns receives the scalars that it missed.
A record is the message "record": its meta data names who trained what, its body holds their slopes
(float32, as they came). With shared directions the server has averaged the slopes before anything
is rebuilt, so a record has one entry and its size depends neither on the number of parameters nor
on the cohort. Records are self-delimiting: several of them, one after the other, are a log.

    meta  {"r": round, "a": [assignment by kind of entry]}
          an assignment is a list of [start, stop) over the sorted names of all parameters
    body  "entries" -> [N, 3] int64: client, examples, kind
          "kind/group" -> [n, steps, K] float32, its n entries in their order; "sums/group" -> [P]
          float64

Entries of one kind have the same assignment and shapes, so a client costs 24 bytes and its slopes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from forefed.core.errors import ProtocolError
from forefed.core.types import Params
from forefed.wire.message import (
    frames,
    pack,
    pack_tensors,
    unpack,
    unpack_tensors,
)


@dataclass(frozen=True)
class Entry:
    """The slopes of one client, or the averaged ones of several that share their directions.

    ``client`` decides the directions (where they are not shared) and the engine; ``slopes`` maps a
    group to [steps, K] float32.
    """

    client: int
    n_examples: int
    assigned: tuple[str, ...]
    slopes: dict[str, Tensor]
    clients: int = 1
    """Of how many clients they are the mean before the server has them; no record says it."""


@dataclass(frozen=True)
class RoundRecord:
    """What the server applied in one round; or, with a pool of directions, ``sums`` [P] by group of
    all that it has applied up to the end of this round."""

    round: int
    entries: tuple[Entry, ...] = ()
    sums: Params = field(default_factory=dict)


def encode_record(record: RoundRecord, names: Iterable[str]) -> bytes:
    """One record; ``names`` are those of all parameters."""
    position = {name: i for i, name in enumerate(sorted(names))}
    kinds: dict[tuple[object, ...], list[Entry]] = {}
    for entry in record.entries:
        kinds.setdefault(_kind(entry), []).append(entry)
    number = {kind: i for i, kind in enumerate(kinds)}
    rows = [[e.client, e.n_examples, number[_kind(e)]] for e in record.entries]
    body = {f"sums/{group}": x for group, x in record.sums.items()}
    if rows:
        body["entries"] = torch.tensor(rows, dtype=torch.int64)
    for i, alike in enumerate(kinds.values()):
        for group in alike[0].slopes:
            body[f"{i}/{group}"] = torch.stack([e.slopes[group] for e in alike])
    assignments = [_runs([position[n] for n in alike[0].assigned]) for alike in kinds.values()]
    return pack("record", {"r": record.round, "a": assignments}, pack_tensors(body))


def _kind(entry: Entry) -> tuple[object, ...]:
    shapes = sorted((group, tuple(x.shape)) for group, x in entry.slopes.items())
    return (entry.assigned, *shapes)


def decode_record(data: bytes | memoryview, names: Iterable[str]) -> RoundRecord:
    """The inverse.

    Raises:
        ProtocolError: damaged, or of a form that no server of this version sends.
    """
    meta, body = unpack(data, "record")
    ordered = sorted(names)
    tensors = unpack_tensors(body)
    rows = tensors.pop("entries", torch.zeros(0, 3, dtype=torch.int64))
    if rows.dtype != torch.int64 or rows.ndim != 2 or rows.shape[1] != 3:
        raise ProtocolError("record: the entries are no int64 [N, 3]")
    alike = Counter(rows[:, 2].tolist())  # entries of every kind
    slopes: dict[int, dict[str, Iterator[Tensor]]] = {}
    sums: Params = {}
    for place, x in tensors.items():
        kind, _, group = place.partition("/")
        if kind == "sums" and x.ndim == 1 and x.dtype == torch.float64:
            sums[group] = x
            continue
        if not kind[:9].isdecimal() or kind[9:] or x.ndim != 3 or x.dtype != torch.float32:
            raise ProtocolError(f"record: {place!r} is no float32 [entries, steps, K]")
        if len(x) != alike[int(kind)]:  # before it is taken apart: tensors of no bytes may be long
            raise ProtocolError(f"record: {place!r} is for {len(x)} entries, not its own")
        slopes.setdefault(int(kind), {})[group] = iter(x.unbind())
    try:
        if len(meta["a"]) != len(alike):
            raise ValueError(f"{len(meta['a'])} assignments of {len(alike)} kinds")
        assignments = [_names(ordered, runs) for runs in meta["a"]]
        entries = tuple(
            Entry(client, n, assignments[kind], {g: next(x) for g, x in slopes[kind].items()})
            for client, n, kind in rows.tolist()
        )
        return RoundRecord(int(meta["r"]), entries, sums)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the record cannot be read: {error!r}") from None


def decode_records(data: bytes, names: Collection[str]) -> Iterator[RoundRecord]:
    """The records of a log, in the order in which they were written."""
    for frame in frames(data):
        yield decode_record(frame, names)


@dataclass(frozen=True)
class RecordLog:
    """What the server keeps so that clients can catch up.

    ``records``: the last rounds, by round; ``visits``: the round in which a client answered last,
    at whose beginning it held the server's parameters. Records are kept as long as all of them
    together are fewer bytes than the parameters: whoever has missed more receives those.
    """

    records: Mapping[int, bytes] = field(default_factory=dict)
    visits: Mapping[int, int] = field(default_factory=dict)

    def missed(self, client: int) -> bytes | None:
        """The records from the client's last visit on; None: it needs the parameters."""
        if client not in self.visits:
            return None
        return b"".join(x for r, x in self.records.items() if r >= self.visits[client])

    def after(self, round: int, record: bytes, visitors: Iterable[int], limit: int) -> RecordLog:
        """The log after a round that these clients answered; ``limit``: bytes of the parameters."""
        records = {**self.records, round: record}
        total = sum(len(x) for x in records.values())
        for oldest in sorted(records):
            if total < limit:
                break
            total -= len(records.pop(oldest))
        visits = {**self.visits, **dict.fromkeys(visitors, round)}
        oldest = min(records, default=round + 1)
        return replace(self, records=records, visits=_from(visits, oldest))

    def without(self, clients: Iterable[int]) -> RecordLog:
        """Forget the visits of these clients."""
        forgotten = set(clients)
        return replace(self, visits={c: r for c, r in self.visits.items() if c not in forgotten})

    def tensors(self) -> Params:
        """As a checkpoint keeps it."""
        kept = {
            f"record/{r}": torch.frombuffer(bytearray(x), dtype=torch.uint8)
            for r, x in self.records.items()
        }
        visits = torch.tensor(sorted(self.visits.items()), dtype=torch.int64).reshape(-1, 2)
        return {**kept, "visits": visits} if self.visits else kept

    @staticmethod
    def of_tensors(tensors: Params) -> RecordLog:
        """The inverse of ``tensors``."""
        records = {
            int(name.removeprefix("record/")): x.numpy().tobytes()
            for name, x in tensors.items()
            if name != "visits"
        }
        visits = tensors["visits"].tolist() if "visits" in tensors else []
        return RecordLog(dict(sorted(records.items())), {int(c): int(r) for c, r in visits})


def _from(visits: Mapping[int, int], oldest: int) -> dict[int, int]:
    return {client: r for client, r in visits.items() if r >= oldest}


def _runs(positions: Sequence[int]) -> list[list[int]]:
    """[start, stop) pairs that list these positions in their order."""
    runs: list[list[int]] = []
    for p in positions:
        if runs and runs[-1][1] == p:
            runs[-1][1] = p + 1
        else:
            runs.append([p, p + 1])
    return runs


def _names(ordered: Sequence[str], runs: Iterable[Sequence[int]]) -> tuple[str, ...]:
    """The inverse of ``_runs``, by name."""
    found: list[str] = []
    for start, stop in runs:
        if not 0 <= start < stop <= len(ordered) or len(found) + stop - start > len(ordered):
            raise IndexError(f"[{start}, {stop}) of {len(ordered)} parameters, each at most once")
        found += ordered[start:stop]
    return tuple(found)
