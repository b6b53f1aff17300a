"""A client's model, rows and answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forefed.core.errors import ProtocolError, UserError
from forefed.slim.codecs import check_codec, encode
from forefed.slim.orders import Arrays, read_order
from forefed.slim.settings import GRAPH, ROWS, TOKENS, Settings, read_settings
from forefed.slim.steps import Indices, train

MISSING = "{what} is not installed; pip install 'forefed[onnx]', or for this client alone: pip \
install --no-deps forefed, and onnxruntime tokenizers safetensors xxhash"


class Graph:
    """Logits as a function of the adapter and a batch, by ONNX Runtime.

    Args:
        path: of a graph that ``forefed.models.graph`` has written.
        threads: that one run takes.
    """

    def __init__(self, path: Path, threads: int = 1):
        try:
            import onnxruntime
        except ImportError:
            raise UserError(MISSING.format(what="onnxruntime")) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3
        # packed copies of the matrices would double what the weights take
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own classes, none of them public
            raise UserError(f"{path}: no graph that ONNX Runtime reads ({error})") from None
        self.shapes = {x.name: x.shape for x in self.session.get_inputs()}

    @property
    def params(self) -> dict[str, list[int]]:
        """The shapes of the parameters that are inputs."""
        return {n: s for n, s in self.shapes.items() if n not in INPUTS}

    def logits(self, params: Arrays, inputs: dict[str, Indices]) -> NDArray[Any]:
        """[B, C]"""
        beside = {n: x for n, x in inputs.items() if n in self.shapes}
        logits: NDArray[Any] = self.session.run(None, {**params, **beside})[0]
        return logits


INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Rows:
    """N texts as tokens, with their classes."""

    ids: list[Indices]
    types: list[Indices]
    labels: Indices
    pad_id: int

    @property
    def lengths(self) -> Indices:
        return np.array([len(x) for x in self.ids], dtype=np.int64)

    def batch(self, rows: Indices) -> dict[str, Indices]:
        """The model's inputs [B, S], padded on the right."""
        shape = len(rows), int(self.lengths[rows].max())
        ids, mask, types = np.full(shape, self.pad_id), np.zeros(shape, int), np.zeros(shape, int)
        for b, row in enumerate(rows):
            size = len(self.ids[row])
            ids[b, :size], mask[b, :size], types[b, :size] = self.ids[row], 1, self.types[row]
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def read_rows(folder: Path, settings: Settings) -> Rows:
    """The texts and labels of a folder, tokenised.

    Raises:
        UserError: a file that is missing, or a row that is none.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(MISSING.format(what="tokenizers")) from None
    for name in (TOKENS, ROWS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: it is not there; write the client's folder again")
    tokenizer = Tokenizer.from_file(str(folder / TOKENS))
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_length)
    texts, labels = [], []
    with (folder / ROWS).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                texts.append(str(row["text"]))
                labels.append(int(row["label"]))
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{folder / ROWS}:{number}: a row is {{'text': ..., 'label': 0}}"
                ) from None
    found = tokenizer.encode_batch(texts)
    ids = [np.array(x.ids or [settings.empty_id], dtype=np.int64) for x in found]
    types = [np.array(x.type_ids or [0], dtype=np.int64) for x in found]
    return Rows(ids, types, np.array(labels, dtype=np.int64), settings.pad_id)


@dataclass(frozen=True)
class Client:
    """Answers orders from its folder. Keeps nothing between two of them."""

    settings: Settings
    graph: Graph
    rows: Rows

    @staticmethod
    def of(folder: Path, threads: int = 1) -> Client:
        """Raises UserError: a folder that is not whole."""
        settings = read_settings(folder)
        check_codec(settings.codec)
        return Client(settings, Graph(folder / GRAPH, threads), read_rows(folder, settings))

    def __call__(self, order: bytes | memoryview, params: Arrays) -> bytes:
        """The update that answers an order.

        Args:
            params: of the round's broadcast.

        Raises:
            ProtocolError: an order that is damaged, or not for this graph.
        """
        here, there = self.graph.params, {n: list(x.shape) for n, x in params.items()}
        odd = sorted(n for n in {*here, *there} if here.get(n) != there.get(n))
        if odd:
            raise ProtocolError(f"the parameters are not those of this graph: {odd[:3]}")
        read = read_order(order, params)
        answer = train(self.settings, read, self.rows.lengths, self.loss)
        return encode(self.settings.codec, answer.slopes, read, answer.n_examples, answer.metrics)

    def loss(self, params: Arrays, rows: Indices) -> float:
        """Mean cross-entropy in nats, float64."""
        logits = self.graph.logits(params, self.rows.batch(rows)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(rows)), self.rows.labels[rows]]
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen))
