"""Clients whose model is only a function, behind an address: no derivative, no torch, no weights.

Three sites each ask a service of their own (here: a few lines of numpy, started below) for the
probabilities of two labels, at points of a small vector that they learn together. What travels
between sites and server is one byte per slope.

python examples/black_box.py
"""

import json
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch

import forefed

WIDTH = 32


def features(text: str) -> np.ndarray:
    """Words counted by a checksum: what a model that nobody may look into does with a text."""
    counts = np.zeros(WIDTH)
    for word in text.split():
        counts[zlib.crc32(word.encode()) % WIDTH] += 1
    return counts


class Service(BaseHTTPRequestHandler):
    """Answers {"parameters": {"v": [P, WIDTH]}, "batch": {"text": [...]}}."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        v = np.array(asked["parameters"]["v"])
        x = np.stack([features(text) for text in asked["batch"]["text"]])
        yes = 1 / (1 + np.exp(-v @ x.T))  # [points, rows]
        said = json.dumps({"probabilities": np.stack([1 - yes, yes], axis=-1).tolist()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed for every question."""


ROWS = [
    ("the printer is out of paper", 0),
    ("paper is stuck in the printer", 0),
    ("the printer prints no colour", 0),
    ("the screen stays black", 1),
    ("my screen has a black line", 1),
    ("the screen flickers", 1),
]


def main(rounds: int = 40) -> "forefed.run.Simulation":
    service = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    sites = [
        {"text": [text for text, _ in rows], "labels": torch.tensor([label for _, label in rows])}
        for rows in (ROWS[0::3], ROWS[1::3], ROWS[2::3])
    ]
    box = forefed.BlackBox.at(
        f"http://127.0.0.1:{service.server_port}/", returns="probabilities", timeout_s=10
    )
    result = forefed.simulate(
        box,
        {"v": torch.zeros(WIDTH)},
        sites,
        strategy="fedmezo",
        rounds=rounds,
        codec="one_byte",
        directions={"k": 8},
        client={"batch_size": "all", "optimiser": {"lr": 0.3}},
    )
    service.shutdown()
    service.server_close()
    return result


if __name__ == "__main__":
    result = main()
    bytes_up = sum(report.bytes_up for report in result.reports)
    print(f"loss {result.losses[0]:.3f} -> {result.losses[-1]:.3f}, {bytes_up} bytes up in all")
