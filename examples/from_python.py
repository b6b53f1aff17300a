"""A run from Python: the library says what the command line says.

python examples/from_python.py
python examples/from_python.py name=longer rounds=20
"""

import sys

from forefed import configure, run

config = configure(
    sets=[
        "name=from-python",
        "strategy=spry",
        "rounds=3",
        "cohort=4",
        "data.limit=600",
        "partition.clients=20",
        "client.max_steps=2",
        *sys.argv[1:],
    ]
)
result = run(config, resume=(config.folder / "config.json").exists())
print(f"accuracy {result.summary['final']['accuracy']:.3f}; adapter in {result.folder / 'adapter'}")
