"""Train one stage: python scripts/train.py configs/stage1/ucf101.yaml train.max_steps=100 ..."""

import argparse
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import set_seed

from sweettok.stages import STAGES, load_config
from sweettok.train.loop import fit
from sweettok.train.signals import STOPPED

STATUSES = f"""exit status:
  0   the run is finished
  1   it failed: a full disk, losses that are no longer finite, or a process that is lost
  2   a setting or the data is wrong, as the message says
  {STOPPED}  SIGTERM or SIGINT stopped it: it saved, and goes on when started again
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Train the stage that a configuration file describes, or go on with its run.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file, as configs/stage1/ucf101.yaml")
    parser.add_argument("overrides", nargs="*", help="settings to change, as train.max_steps=100")
    options = parser.parse_args(arguments)
    try:
        run = load_config(options.config, options.overrides)
        set_seed(run.train.seed)
        finished = fit(STAGES[run.stage](run), run)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2 if isinstance(error, ValueError | FileNotFoundError) else 1
        if not isinstance(error, ConnectionError):  # the process that is gone has more to tell
            tell_launcher(status, f"error: {error}\n")
        return status  # without a farewell, for which others that wait for this process might keep it
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if finished:
        return 0
    return 0 if tell_launcher(STOPPED) else STOPPED  # to which anything but 0 is a failure


def tell_launcher(status: int, text: str = "") -> bool:
    """Leave the exit status, and a last word, to the launcher of several processes, if there is one; whether there is.

    It knows no status but 0 and 1; scripts/launch.sh reads them from a file.
    """
    file = os.environ.get("LAUNCH_STATUS")
    if file:
        Path(file).write_text(f"{status}\n{text}")
    return bool(file)


if __name__ == "__main__":
    sys.exit(main())
