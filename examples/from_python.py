"""A run from Python: the library says what the command line says.

python examples/from_python.py
"""

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
    ]
)
result = run(config, resume=(config.folder / "config.json").exists())
print(f"accuracy {result.summary['final']['accuracy']:.3f}; adapter in {result.folder / 'adapter'}")
