"""Entry point of the `sweettok` command: runs a subcommand and turns errors into exit statuses.

The subcommand <name> is implemented by the module `sweettok.cli.<name>`, which is imported only when it is used. It
defines either `add_arguments(parser)` and `run(args) -> int | None`, which returns the exit status (None for 0), or a
group of commands, `COMMANDS: dict[str, Command]`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, NoReturn

from sweettok.cli.launcher import report_to_launcher

# Name of each subcommand, and its one-line description.
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
    "export": "write models for other programs: transformers, torch.export",
    "answer": "ask a language model about videos",
    "generate": "generate videos of captions with a language model and a video decoder",
    "words": "show and evaluate the words of video tokens",
    "eval": "evaluate reconstruction and generation",
    "demo": "serve a page in the browser to try a tokenizer",
}

FAILED, WRONG_INPUT, STOPPED, INTERRUPTED = 1, 2, 75, 130
STATUS_HELP = """exit status:
  0    success
  1    the work failed, for example because the disk is full or a process was lost
  2    an argument, a setting or an input file is wrong
  75   training was stopped by a signal after saving a checkpoint; start it again to resume
  130  interrupted with Ctrl-C
"""

# Errors of the input and of the environment are printed without traceback. All others are bugs.
PATH_ERRORS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
INPUT_ERRORS = (ValueError, EOFError, *PATH_ERRORS)
ENVIRONMENT_ERRORS = (OSError, FloatingPointError, ImportError, MemoryError)


class Command(NamedTuple):
    """A command of a group; `help` is its one-line description."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """Raises ValueError for wrong arguments, so that they are reported like other errors."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None, prog: str = "sweettok") -> int:
    """Run a subcommand and return its exit status. `argv`: the arguments, by default those of the process."""
    argv = sys.argv[1:] if argv is None else list(argv)

    def work() -> int | None:
        args = build_parser(argv, prog).parse_args(argv)
        return args.run(args)

    return run_reporting_errors(work)


def build_parser(argv: Sequence[str], prog: str = "sweettok") -> argparse.ArgumentParser:
    """The parser of the whole command; only the subcommand that `argv` starts with has its options."""
    parser = Parser(
        prog=prog,
        description="SweetTok: video clips as words, and back.",
        epilog=STATUS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda args: parser.print_help())
    subparsers = parser.add_subparsers(metavar="COMMAND")
    for name, text in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=sentence(text))
        if argv and argv[0] == name:
            add_subcommand(subparser, import_module(f"sweettok.cli.{name}"))
    return parser


def add_subcommand(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    """Add the options or the commands of a subcommand's module to its parser."""
    commands: dict[str, Command] | None = getattr(module, "COMMANDS", None)
    if commands is None:
        module.add_arguments(parser)
        parser.set_defaults(run=module.run)
        return
    parser.set_defaults(run=lambda args: parser.print_help())
    subparsers = parser.add_subparsers(metavar="COMMAND")
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.help, description=sentence(command.help))
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)


def sentence(text: str) -> str:
    """A one-line description as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def run_reporting_errors(work: Callable[[], int | None]) -> int:
    """Run `work` and return the exit status of the process (see STATUS_HELP).

    The last line on stderr after an error is `error: ...`. In a process of scripts/launch.sh, status and line are sent
    to the launcher, which prints them once for all processes.
    """
    try:
        status, text = work() or 0, ""
        sys.stdout.flush()  # raises BrokenPipeError here, not when the interpreter exits
    except BrokenPipeError:  # the reader, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        status, text = INTERRUPTED, "interrupted"
    except INPUT_ERRORS as error:
        status, text = WRONG_INPUT, f"error: {describe(error)}"
    except ENVIRONMENT_ERRORS as error:
        status, text = FAILED, f"error: {describe(error)}"
    except Exception as error:
        text = f"error: {describe(error)}"
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which is not imported here
            report_to_launcher(FAILED, text)
            raise
        status = FAILED
    if status == 0:
        return 0
    if report_to_launcher(status, text):
        return 0 if status == STOPPED else status  # the launcher ends all processes when one fails
    if text:
        print(text, file=sys.stderr)
    return status


def describe(error: Exception) -> str:
    """The message of an error on one line; for an OSError, the file and the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
