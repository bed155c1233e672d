"""Command line: python -m sweettok.inference tokenize | sample."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sweettok.commands import run_commands

COMMANDS = {
    "tokenize": "encode a list of videos once, into token shards",
    "sample": "draw new videos from a generator",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; problems of the input become one line on stderr and exit code 1."""
    return run_commands("sweettok.inference", "Tokens and new videos.", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
