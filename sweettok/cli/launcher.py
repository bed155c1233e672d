"""`accelerate launch` with the exit status and error message of the first failed process; used by scripts/launch.sh.

Accelerate itself exits with 0 or 1, and reports a failed process with a traceback.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Environment variable: file for the exit status and, on the following lines, the message of a failed process.
STATUS_FILE = "LAUNCH_STATUS"


def report_to_launcher(status: int, text: str) -> bool:
    """Send an exit status and a message to the launcher; False if there is none.

    Only the first report is used. Processes that only lost the connection to a failed one wait, to report later.
    """
    path = os.environ.get(STATUS_FILE)
    if not path:
        return False
    if isinstance(sys.exc_info()[1], ConnectionError):
        time.sleep(1)
    with suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
        file.write(f"{status}\n{text}\n")
    return True


def launch(argv: Sequence[str]) -> int:
    """Run `accelerate launch`; prints the message and returns the exit status of the first failed process, or 0."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    args = launch_command_parser().parse_args(argv)
    status, text = 0, ""
    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        report = Path(folder) / "status"
        os.environ[STATUS_FILE] = str(report)
        try:
            launch_command(args)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            cause = f"exit status {failure.exitcode}" if failure.exitcode > 0 else failure.signal_name()
            status, text = 1, f"error: process {rank} ended with {cause}"
        except subprocess.CalledProcessError as error:
            status = error.returncode
        except (SignalException, KeyboardInterrupt) as error:
            interrupted = getattr(error, "sigval", signal.SIGINT) == signal.SIGINT
            status, text = (130, "interrupted") if interrupted else (143, "error: terminated by SIGTERM")
        if report.exists():
            first, _, text = report.read_text(encoding="utf-8").partition("\n")
            status, text = int(first), text.strip("\n")
    if text:
        print(text, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
