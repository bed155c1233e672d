"""Entry point of the `sweettok` command: finds the subcommand, runs it, and turns errors into exit statuses.

A module `sweettok.cli.<name>` implements one subcommand and is imported only when that subcommand is asked for. It
defines either a command

    add_arguments(parser)     declares the options
    run(args) -> int | None   does the work; the exit status, None means 0

or a group of commands

    COMMANDS: dict[str, Command]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

# Subcommand -> one-line description. The module of the same name in this package implements it.
SUBCOMMANDS = {
    "train": "train a stage from a configuration file, or resume its run",
    "plan": "print the steps, parameters, FLOPs and memory that a training run needs",
    "config": "print every setting of a configuration file, resolved",
    "data": "check, import and generate video lists",
    "priors": "build and inspect codebook priors",
    "encode": "encode a video of any length into a file of token ids",
    "decode": "decode a file of token ids into a video",
    "tokenize": "encode a list of videos into token shards",
    "sample": "generate videos with a trained generator",
    "words": "show and evaluate the words of video tokens",
    "eval": "evaluate reconstruction and generation",
}

STATUS_HELP = """exit status:
  0    success
  1    the work failed, for example because the disk is full or a process was lost
  2    an argument, a setting or an input file is wrong
  75   training was stopped by a signal after saving a checkpoint; start it again to resume
  130  interrupted with Ctrl-C
"""


class Command(NamedTuple):
    """A command of a group: its one-line description, its options and its work."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def main(argv: Sequence[str] | None = None, prog: str = "sweettok") -> int:
    """Run a subcommand and return its exit status; `argv` defaults to the arguments of the program."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser(argv, prog).parse_args(argv)
    return run_reporting_errors(args.run, args)


def build_parser(argv: Sequence[str], prog: str = "sweettok") -> argparse.ArgumentParser:
    """The parser of the whole command, with the options of the one subcommand that `argv` names."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="SweetTok: video clips as words, and back.",
        epilog=STATUS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=sentence(text))
        if argv and argv[0] == name:
            add_subcommand(subparser, import_module(f"sweettok.cli.{name}"))
    return parser


def add_subcommand(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    """Add the options of a subcommand's module, or the commands of its group."""
    commands: dict[str, Command] | None = getattr(module, "COMMANDS", None)
    if commands is None:
        module.add_arguments(parser)
        parser.set_defaults(run=module.run)
        return
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.help, description=sentence(command.help))
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)


def sentence(text: str) -> str:
    """A one-line description as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def run_reporting_errors(work: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Exit status of `work(args)`; errors become one line on stderr (see STATUS_HELP)."""
    try:
        return work(args) or 0
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        status, text = 2, f"error: {error}"
    except (OSError, FloatingPointError, ImportError) as error:
        status, text = 1, f"error: {error}"
    except KeyboardInterrupt:
        status, text = 130, "interrupted"
    print(text, file=sys.stderr)
    return status
