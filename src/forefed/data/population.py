"""The clients of a simulation, looked up one by one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from forefed.core.keys import Key
from forefed.core.types import Json
from forefed.data.examples import ClientData, Examples, Indices
from forefed.data.shares import Shares


@dataclass(frozen=True)
class Population:
    """``size`` clients over one set of examples.

    ``kind`` is the partition's; ``client_test_fraction`` the part of its examples that a client
    keeps for testing, drawn by ``key`` and the client's number.
    """

    kind: str
    examples: Examples
    shares: Shares
    key: Key
    client_test_fraction: float
    label_names: tuple[str, ...]

    @property
    def size(self) -> int:
        return self.shares.size

    def client(self, i: int) -> ClientData:
        """Client ``i``'s data; the cost does not depend on the number of clients.

        A client with a single example trains on it and has no test split.

        Raises:
            IndexError: no such client.
        """
        rows = self._rows(i)
        size = min(round(len(rows) * self.client_test_fraction), max(len(rows) - 1, 0))
        order = self.key.fold("client test", i).permutation(len(rows))
        return ClientData(
            self.examples, train=rows[np.sort(order[size:])], test=rows[np.sort(order[:size])]
        )

    def summary(self, limit: int = 1000) -> Json:
        """Who holds what, for the record: the first ``limit`` clients' sizes and label counts.

        Returns:
            "kind", "clients", "labels" (names; the ends of a scale of numbers; none where neither
            is learned), "sizes" [shown], "counts" [shown, labels] (none of numbers), "shown",
            "dropped" (examples that nobody holds), and "digest", the SHA-256 of the shown clients'
            examples.
        """
        shown = min(limit, self.size)
        digest = hashlib.sha256()
        sizes, counts = [], []
        for i in range(shown):
            rows = self._rows(i)
            digest.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
            sizes.append(len(rows))
            labels = self.examples.labels[rows]
            if labels.ndim == 2 and self.label_names:
                counts.append(labels.sum(0).tolist())
            elif self.label_names and labels.dtype.kind == "i":
                counts.append(np.bincount(labels, minlength=len(self.label_names)).tolist())
        return {
            "kind": self.kind,
            "clients": self.size,
            "labels": list(self.label_names),
            "sizes": sizes,
            "counts": counts,
            "shown": shown,
            "dropped": self.shares.dropped,
            "digest": digest.hexdigest(),
        }

    def _rows(self, i: int) -> Indices:
        if not 0 <= i < self.size:
            raise IndexError(f"client {i} of {self.size}")
        return self.shares.rows(i)
