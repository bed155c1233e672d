"""What the command lines of the packages share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def report_errors(work: Callable[[], int | None]) -> int:
    """Exit code of `work()`, 0 for None; problems of the input become one line on stderr and 1, Ctrl-C one and 130."""
    try:
        return work() or 0
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 130


def run_commands(package: str, description: str, commands: Mapping[str, str], argv: Sequence[str] | None = None) -> int:
    """Run one of the commands of `python -m package`; returns the exit code.

    commands: what each does, by name; the module `package.<name>` offers `add_arguments(parser)` and `main(args)`, and
        is imported when it is asked for.
    argv: instead of the program's arguments.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=description)
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, told in commands.items():
        command = parsers.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.")
        if argv and argv[0] == name:
            import_module(f"{package}.{name}").add_arguments(command)
    args = parser.parse_args(argv)
    return report_errors(lambda: import_module(f"{package}.{args.command}").main(args))
