"""Command line: python -m sweettok.words show | overlay | episodes | fewshot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

COMMANDS = {
    "show": "which words a clip is told in, how often and where",
    "overlay": "draw the words on the places of the frame that they speak of",
    "episodes": "draw few-shot tasks from labelled clips, to be shared by several runs",
    "fewshot": "recognise classes by words: with a language model, and without one on the same episodes",
}


def _module(name: str) -> ModuleType:
    """What runs a command: it offers `add_arguments(parser)` and `main(args)`."""
    return import_module(f"sweettok.words.{name}")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweettok.words", description="Tokens that read.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, told in COMMANDS.items():
        command = commands.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.")
        if name == chosen:
            _module(name).add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; problems of the input become one line on stderr and exit code 1."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser(next(iter(argv), None)).parse_args(argv)
    try:
        _module(args.command).main(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
