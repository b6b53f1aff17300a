"""A client without torch: numpy, ONNX Runtime and a tokeniser, for machines that only infer.

It has the losses of a graph whose adapter is an input, at points around the parameters that the
server sends, and answers with slopes (finite differences), which the server replays as it does
anybody's. Directions, batches and bytes are those of ``forefed.local`` and ``forefed.wire``, bit
for bit; a test holds one against the other. Nothing here may import torch (pyproject.toml).

``python -m forefed.slim FOLDER`` answers on its standard streams. ``forefed.run.slim`` writes the
folder, and drives such processes as the clients of a rehearsal.
"""
