"""``python -m stillroom``: the command line, also for launchers that start modules."""

from stillroom.cli import main

main()
