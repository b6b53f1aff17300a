"""A function behind an HTTP address: one POST a question, JSON both ways, the standard library.

    question   {"parameters": {"w": [P, ...]}, "batch": {"text": ["..."], "x": [B, ...]}}
    answer     {"losses": [P, B] or [P]}   or   {"probabilities": [P, B, C]}

float32 numbers are written so that they are read as the same float32; ``null`` is not a number (a
step that hears it rests). Nothing is asked twice: what is wrong ends the run in one sentence.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from numpy.typing import NDArray

from forefed.core.errors import UserError, several

LONGEST = 1 << 26
"""Bytes of an answer that are read."""


@dataclass(frozen=True)
class Endpoint:
    """Asks an address of the user's own.

    Args:
        url: http:// or https://
        key: under which the answer has its numbers.
        timeout_s: how long the connection and every piece of the answer may take.
        headers: sent with every question; not shown in errors.
    """

    url: str
    key: str
    timeout_s: float = 30.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname)
            parts.port  # noqa: B018 (raises where it is none)
        except ValueError:
            whole = False
        if not whole:
            raise UserError(
                f"black box '{self.url}': this is no address; give one as http://127.0.0.1:8000/"
            )
        if not self.timeout_s > 0:
            raise UserError(f"black box {self.url}: timeout_s = {self.timeout_s}; give seconds > 0")

    def __call__(self, params: Mapping[str, NDArray[Any]], batch: Mapping[str, Any]) -> Any:
        """The numbers that come back, nested lists.

        Raises:
            UserError: nobody answers, not in time, not with JSON, or not what was asked.
        """
        question = {
            "parameters": {n: x.tolist() for n, x in params.items()},
            "batch": {n: x if isinstance(x, list) else x.tolist() for n, x in batch.items()},
        }
        said = self._post(json.dumps(question).encode())
        try:
            answer = json.loads(said)
        except ValueError:
            raise self._wrong(f"it answered no JSON, but {_begin(said)}") from None
        if not isinstance(answer, dict) or self.key not in answer:
            has = several(answer) if isinstance(answer, dict) else type(answer).__name__
            raise self._wrong(f"its answer has no '{self.key}', but {has or 'nothing'}")
        return answer[self.key]

    def _post(self, body: bytes) -> bytes:
        head = {"Content-Type": "application/json", **self.headers}
        try:
            request = urllib.request.Request(self.url, body, head)
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                said: bytes = answer.read(LONGEST + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._wrong(
                    f"it refused with status {error.code}: {_begin(error.read(200))}"
                ) from None
        except TimeoutError:
            raise self._late() from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise self._late() from None
            raise self._wrong(f"nobody answers there ({error.reason}); start it first") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._wrong(f"the connection broke ({error or type(error).__name__})") from None
        if len(said) > LONGEST:
            raise self._wrong(f"its answer is longer than {LONGEST} bytes")
        return said

    def _late(self) -> UserError:
        return self._wrong(
            f"no answer within {self.timeout_s:g} s; raise timeout_s, or lower points or "
            "client.batch_size"
        )

    def _wrong(self, what: str) -> UserError:
        return UserError(f"black box {self.url}: {what}")


def _begin(said: bytes) -> str:
    return repr(said[:80].decode(errors="replace"))
