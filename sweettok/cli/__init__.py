"""The command line: `sweettok`, or `python -m sweettok`."""

from sweettok.cli.main import main

__all__ = ["main"]
