"""A model that is only a function: losses or label probabilities come out, no derivative does.

What stands behind it may be any program: a model of another framework, a service, a simulator. It
is asked for its losses at points of the trainable parameters, and the engine of finite differences
makes slopes of these (SPSA, Spall 1992; MeZO, arXiv 2305.17333). All that follows from slopes
(codecs, shared directions, replay, resume) is as for every other client.

    def losses(params, batch):                           # arrays by name; texts are lists of str
        return ((batch["x"] @ params["w"] - batch["y"]) ** 2)

    forefed.simulate(forefed.BlackBox(losses), {"w": torch.zeros(5)}, clients, strategy="fedmezo")

Legend: P points (values of the parameters), B rows of a batch, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forefed.core.errors import UserError
from forefed.core.texts import Texts
from forefed.core.types import Batch, Params
from forefed.models.endpoint import Endpoint

Arrays = Mapping[str, NDArray[Any]]
Columns = Mapping[str, NDArray[Any] | list[str]]
Function = Callable[[Arrays, Columns], Any]

LEAST = 1e-12
"""A label's probability counts as at least so much: a loss of 27.6 at most."""


@dataclass(frozen=True)
class BlackBox:
    """A ``LossFn`` over a function without derivatives; for ``forefed.simulate``.

    Args:
        function: (parameters, batch) -> what ``returns`` says. Parameters are read-only arrays by
            name; the batch has the client's columns at the batch's rows, arrays or lists of texts.
        returns: "losses": of every row [B], or their mean, one number; "probabilities": of every
            label [B, C], which become -log of that of the row's label.
        labels: the column of the rows' labels, whole numbers from 0; with "probabilities" it is
            read here and not shown to the function.
        batched: the function takes many points at once: parameters are stacked [P, ...], and what
            it returns has P in front: [P, B] or [P], [P, B, C].
        points: at most so many a call, where it is batched.
    """

    function: Function
    returns: Literal["losses", "probabilities"] = "losses"
    labels: str = "labels"
    batched: bool = False
    points: int = 64
    name: str = field(default="black box", compare=False)
    """What errors call it."""

    values_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.returns not in ("losses", "probabilities"):
            raise UserError(
                f"{self.name}: returns = {self.returns!r}; give 'losses' or 'probabilities'"
            )
        if not callable(self.function) or self.points < 1:
            raise UserError(f"{self.name}: it takes a function, and at least one point a call")

    @staticmethod
    def at(
        url: str,
        *,
        returns: Literal["losses", "probabilities"] = "losses",
        labels: str = "labels",
        timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
        points: int = 64,
    ) -> BlackBox:
        """One behind an address of the user's own, asked by POST with JSON (models/endpoint.py).

        Args:
            url: http:// or https://
            returns: as above; the key of the answer, too.
            labels: as above.
            timeout_s: how long an answer may take.
            headers: sent with every question (a token, for example).
            points: at most so many in one question.

        Raises:
            UserError: an address that is none.
        """
        ask = Endpoint(url, returns, timeout_s, dict(headers or {}))
        return BlackBox(ask, returns, labels, True, points, name=f"black box {url}")

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """The batch's mean loss, a float64 scalar without a graph."""
        return self.at_points({n: x[None] for n, x in params.items()}, batch)[0]

    def weight(self, batch: Batch) -> int:
        return batch.size

    def at_points(self, params: Params, batch: Batch) -> Tensor:
        """The batch's mean loss at each of P points [P], float64; not finite where the point is
        not, which nobody is asked about.

        Args:
            params: stacked, [P, ...] by name.

        Raises:
            UserError: no answer, or one of another form.
        """
        arrays = {n: _array(x) for n, x in params.items()}
        count = len(next(iter(arrays.values())))
        columns: dict[str, NDArray[Any] | list[str]] = {
            n: list(x) if isinstance(x, Texts) else _array(x) for n, x in batch.inputs.items()
        }
        labels = self._labels(columns) if self.returns == "probabilities" else None
        finite = np.ones(count, dtype=bool)
        for x in arrays.values():
            finite &= np.isfinite(x).reshape(count, -1).all(1)
        found, asked = np.full(count, np.nan), np.flatnonzero(finite)
        at_once = self.points if self.batched else 1
        for start in range(0, len(asked), at_once):
            some = asked[start : start + at_once]
            chosen = {n: _unwritable(x[some]) for n, x in arrays.items()}
            if not self.batched:
                chosen = {n: _unwritable(x[0, ...]) for n, x in chosen.items()}
            answer = self._numbers(self.function(chosen, columns))
            answer = answer if self.batched else answer[None]
            found[some] = self._means(answer, len(some), batch.size, labels)
        return torch.from_numpy(found)

    def _labels(self, columns: dict[str, Any]) -> NDArray[np.int64]:
        labels = columns.pop(self.labels, None)
        if labels is None:
            raise UserError(
                f"{self.name}: probabilities want a column '{self.labels}' of every client, the "
                f"rows' labels from 0; its columns are {sorted(columns)}"
            )
        return np.asarray(labels).astype(np.int64)

    def _numbers(self, answer: object) -> NDArray[np.float64]:
        if isinstance(answer, Tensor):
            answer = answer.detach().cpu()
        try:
            if answer is None:
                raise TypeError
            return np.asarray(answer, dtype=np.float64)  # None within is no number
        except (TypeError, ValueError):
            raise UserError(
                f"{self.name}: it returned {type(answer).__name__}; {self.returns} are numbers, in "
                "an array or list without gaps"
            ) from None

    def _means(
        self, answer: NDArray[np.float64], points: int, rows: int, labels: NDArray[np.int64] | None
    ) -> NDArray[np.float64]:
        """The mean losses [P] of what came back for so many points and rows."""
        front = (points,) if self.batched else ()
        if labels is None:
            if answer.shape == (points,):
                return answer
            if answer.shape == (points, rows):
                return answer.mean(axis=1)
            wanted = f"{[*front, rows]} (a loss a row) or {[*front]} (their mean)"
        else:
            if answer.ndim == 3 and answer.shape[:2] == (points, rows):
                if not 0 <= labels.min() <= labels.max() < answer.shape[2]:
                    raise UserError(
                        f"{self.name}: labels from {labels.min()} to {labels.max()}, and "
                        f"probabilities of {answer.shape[2]}; number labels from 0"
                    )
                chances = answer[:, np.arange(rows), labels]
                return -np.log(np.maximum(chances, LEAST)).mean(axis=1)
            wanted = f"{[*front, rows, 'labels']}"
        shape = [*(answer.shape if self.batched else answer.shape[1:])]
        raise UserError(f"{self.name}: it returned {self.returns} of shape {shape}, not {wanted}")


def _array(x: Tensor) -> NDArray[Any]:
    x = x.detach().cpu()
    return _unwritable((x.float() if x.dtype == torch.bfloat16 else x).numpy())


def _unwritable(x: NDArray[Any]) -> NDArray[Any]:
    """A view that a function cannot write into: what it is shown are the run's own numbers."""
    view = x.view()
    view.flags.writeable = False
    return view
