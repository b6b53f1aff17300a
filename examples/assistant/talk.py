"""Asks a GGUF file of a chat model through llama.cpp (pip install xllamacpp: a wheel of it).

python examples/assistant/talk.py FILE.gguf "A question." "Another one."
"""

from __future__ import annotations

import sys

import xllamacpp


def main(file: str, questions: list[str]) -> None:
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = file, 512, 1
    server = xllamacpp.Server(settings)
    for text in questions:
        asked = {"messages": [{"role": "user", "content": text}], "temperature": 0}
        answer = server.handle_chat_completions({**asked, "max_tokens": 100})
        print(text, "->", answer["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
