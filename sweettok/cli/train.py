"""`sweettok train CONFIG [key=value ...]`: start or resume the training run of a configuration file."""

from __future__ import annotations

import argparse

import torch
from accelerate.utils import set_seed

from sweettok.cli.main import STOPPED
from sweettok.stages import STAGES, load_config
from sweettok.train.loop import fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/stage1/ucf101.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change: train.max_steps=100")


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    set_seed(config.train.seed)
    finished = fit(STAGES[config.stage](config), config)
    # Not after an error, when it might wait for the other processes.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0 if finished else STOPPED
