"""Command line: python -m sweettok.video encode | decode."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sweettok.commands import run_commands

COMMANDS = {
    "encode": "a video of any length and size to the ids of its clips, one file",
    "decode": "such a file back to a video",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; problems of the input become one line on stderr and exit code 1."""
    return run_commands("sweettok.video", "Long videos through a tokenizer.", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
