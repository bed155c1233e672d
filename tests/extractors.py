"""A tiny feature extractor, for tests that have no use for I3D.

`python tests/extractors.py ARGUMENTS` is `sweettok eval ARGUMENTS` with the detector "means" plugged in, and
`ARGUMENTS + ARGUMENTS` two of them. RANK in an argument is replaced by the number of the process.
"""

import os
import sys

import torch

from sweettok.eval.features import EXTRACTORS


class Means:
    """Mean and deviation of each channel, and how much the frames change."""

    width, min_frames = 7, 2

    def to(self, device):
        return self

    def __call__(self, frames):
        values = frames.double() / 255
        change = (values[:, 1:] - values[:, :-1]).abs().mean((1, 2, 3, 4))
        return torch.cat([values.mean((1, 2, 3)), values.std((1, 2, 3)), change[:, None]], dim=1)


def build(path, protocol):
    return Means()


if __name__ == "__main__":
    from accelerate import PartialState

    from sweettok.cli.main import main

    EXTRACTORS["means"] = build
    commands, leave = [["eval"]], PartialState.destroy_process_group
    for word in sys.argv[1:]:
        if word == "+":
            commands.append(["eval"])
        else:
            commands[-1].append(word.replace("RANK", os.environ.get("RANK", "0")))
    for number, command in enumerate(commands, start=1):  # the processes part after the last one
        PartialState.destroy_process_group = leave if number == len(commands) else lambda state: None
        if status := main(command):
            sys.exit(status)
