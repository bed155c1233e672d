"""The `sweettok` command: help, exit statuses, and the last line after a failure, with one process and with several."""

import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from importlib import import_module
from pathlib import Path

import pytest

from sweettok.cli.launcher import report_to_launcher
from sweettok.cli.main import SUBCOMMANDS, main, run_reporting_errors
from sweettok.cli.options import integer, real

ROOT = Path(__file__).resolve().parent.parent


class OutOfMemoryError(RuntimeError):
    """As PyTorch names it."""


@pytest.mark.parametrize(
    ("result", "status", "line"),
    [
        (None, 0, ""),
        (75, 75, ""),
        (ValueError("no\n  such thing"), 2, "error: no such thing\n"),
        (FileNotFoundError(2, "No such file or directory", "a.mp4"), 2, "error: a.mp4: No such file or directory\n"),
        (FileExistsError("there is one"), 2, "error: there is one\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (ImportError("pip install it"), 1, "error: pip install it\n"),
        (FloatingPointError("the loss is NaN"), 1, "error: the loss is NaN\n"),
        (OutOfMemoryError("tried to allocate 2 GiB"), 1, "error: tried to allocate 2 GiB\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_a_status_and_a_line(result, status, line, capsys):
    def work():
        if isinstance(result, BaseException):
            raise result
        return result

    assert run_reporting_errors(work) == status
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_reporting_errors(lambda: {}["absent"])


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_has_help(name, capsys):
    group = getattr(import_module(f"sweettok.cli.{name}"), "COMMANDS", {})
    for argv in [[name], *([name, inner] for inner in group)]:
        with pytest.raises(SystemExit) as stopped:
            main([*argv, "--help"])
        assert stopped.value.code == 0 and f"usage: sweettok {' '.join(argv)}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["words"]])
def test_help_is_printed_where_no_command_is_given(argv, capsys):
    assert main(argv) == 0
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["nothing"], "error: argument COMMAND: invalid choice: 'nothing'"),
        (["words", "overlay"], "error: the following arguments are required: --checkpoint, --out"),
        (["words", "show", "--odd"], "error: "),
    ],
)
def test_wrong_arguments_are_one_line(argv, line, capsys):
    assert main(argv) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == 1 and "--help" in printed


def test_numbers_are_checked():
    assert integer(0)("0") == 0 and integer(1, 3)("3") == 3 and real()("0.5") == 0.5
    for kind, text, bounds in (
        (integer(0), "-1", "a whole number of at least 0"),
        (integer(1, 9), "10", "a whole number from 1 to 9"),
        (integer(), "x", "a whole number of at least 1"),
        (integer(), "100000000000000000000", "a whole number from 1 to 2147483647"),
        (real(), "nan", "a number of at least 0"),
        (real(positive=True), "0", "a number above 0"),
        (real(0, 1), "1.5", "a number of at least 0 and at most 1"),
    ):
        with pytest.raises(ArgumentTypeError, match=f"expected {bounds}, got '{text}'"):
            kind(text)


# --------------------------------------------------------------------------------------------------------- processes

SCRIPT = f"import sys, time\nsys.path.insert(0, {str(ROOT)!r})\nfrom sweettok.cli.main import run_reporting_errors\n"


def start(tmp_path, body, *command, processes=None):
    """Run a Python script of this body, alone or as several processes."""
    (tmp_path / "script.py").write_text(f"{SCRIPT}{body}sys.exit(run_reporting_errors(work))\n")
    launcher = ["bash", str(ROOT / "scripts" / "launch.sh")] if processes else [sys.executable]
    environment = {**os.environ, "NUM_PROCESSES": str(processes), "VIRTUAL_ENV": sys.prefix, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*launcher, str(tmp_path / "script.py"), *command],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_closed_pipe_is_no_error(tmp_path):
    running = start(tmp_path, "def work():\n    for _ in range(100000): print('line')\n")
    running.stdout.readline()
    running.stdout.close()
    assert running.wait(timeout=60) == 1 and running.stderr.read() == ""


def test_ctrl_c_ends_without_a_traceback(tmp_path):
    running = start(tmp_path, "def work():\n    print('ready', flush=True); time.sleep(60)\n")
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60)[1] == "interrupted\n" and running.returncode == 130


def test_several_processes_end_with_the_first_error(tmp_path):
    """The process that waits for the failed one is ended, and the launcher adds nothing of its own."""
    body = (
        "import os\n"
        "def work():\n"
        "    if os.environ['RANK'] == '0': time.sleep(1000)\n"
        "    raise ValueError('no such clip')\n"
    )
    running = start(tmp_path, body, processes=2)
    printed = running.communicate(timeout=120)[1]
    assert running.returncode == 2 and printed.endswith("error: no such clip\n"), printed
    assert "Traceback" not in printed and "Warning" not in printed and printed.count("error") == 1, printed


def test_the_first_report_counts(tmp_path, monkeypatch):
    assert report_to_launcher(1, "") is False
    monkeypatch.setenv("LAUNCH_STATUS", str(tmp_path / "status"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def fail(error):
        raise error

    assert run_reporting_errors(lambda: fail(ValueError("no such clip"))) == 2
    assert run_reporting_errors(lambda: fail(ConnectionError("a process is gone"))) == 1
    assert (tmp_path / "status").read_text() == "2\nerror: no such clip\n"
    assert run_reporting_errors(lambda: 75) == 0  # to the launcher, any other status is a failure
