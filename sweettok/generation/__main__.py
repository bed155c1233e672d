"""Command line: python -m sweettok.generation tokenize | sample."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

COMMANDS = {
    "tokenize": "encode a list of videos once, into token shards",
    "sample": "draw new videos from a generator",
}


def _module(name: str) -> ModuleType:
    """What runs a command: it offers `add_arguments(parser)` and `main(args)`."""
    return import_module(f"sweettok.generation.{name}")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweettok.generation", description="Tokens and new videos.")
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
