"""Command line: python -m sweettok.words show | overlay | episodes | fewshot."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sweettok.commands import run_commands

COMMANDS = {
    "show": "which words a clip is told in, how often and where",
    "overlay": "draw the words on the places of the frame that they speak of",
    "episodes": "draw few-shot tasks from labelled clips, to be shared by several runs",
    "fewshot": "recognise classes by words: with a language model, and without one on the same episodes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; problems of the input become one line on stderr and exit code 1."""
    return run_commands("sweettok.words", "Tokens that read.", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
