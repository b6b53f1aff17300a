"""``python -m forefed.cli``."""

from forefed.cli.entry import main

main()
