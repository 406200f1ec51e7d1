"""The command line: ``stillroom run | list | show | check | report``."""

from stillroom.cli.main import main

__all__ = ["main"]
