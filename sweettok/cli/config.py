"""`sweettok config`: all settings of a configuration file, or the reference page of all settings."""

from __future__ import annotations

import argparse

from omegaconf import OmegaConf

from sweettok.config import to_dict
from sweettok.stages import load_config
from sweettok.stages.reference import reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="file, such as configs/stage1/ucf101.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--reference", action="store_true", help="print the reference page of all settings in Markdown")


def run(args: argparse.Namespace) -> None:
    if args.reference:
        print(reference(), end="")
    elif args.config is None:
        raise ValueError("give a configuration file, such as configs/stage1/ucf101.yaml, or --reference")
    else:
        print(OmegaConf.to_yaml(OmegaConf.create(to_dict(load_config(args.config, args.overrides)))), end="")
