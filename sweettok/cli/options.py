"""Options of several subcommands, and argument types for numbers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from sweettok.config import LARGEST
from sweettok.data.episodes import EpisodeConfig
from sweettok.data.preprocess import POSITIONS
from sweettok.data.resize import RESIZES

EPISODES = ("n_way", "k_shot", "queries", "num", "seed")  # options of `add_episodes`


def integer(least: int = 1, most: int = LARGEST) -> Callable[[str], int]:
    """Argument type: an integer from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            bounds = f"of at least {least}" if value < least and most >= LARGEST else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"expected a whole number {bounds}, got {text!r}")
        return value

    return parse


def real(least: float = 0.0, most: float = math.inf, positive: bool = False) -> Callable[[str], float]:
    """Argument type: a finite number from `least` to `most`; with `positive` above 0."""
    bounds = "above 0" if positive else f"of at least {least:g}"
    bounds += "" if most == math.inf else f" and at most {most:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most) or (positive and value <= 0):
            raise argparse.ArgumentTypeError(f"expected a number {bounds}, got {text!r}")
        return value

    return parse


def add_checkpoint(
    parser: argparse.ArgumentParser, model: str = "the tokenizer", required: bool = True, shipped: bool = True
) -> None:
    text = f"{model}: a folder, {'mini (part of this package), ' if shipped else ''}or user/name on the hub"
    parser.add_argument("--checkpoint", required=required, metavar="MODEL", help=text)


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clips (default: as the model was trained)")
    group.add_argument("--resize", choices=RESIZES, help="how frames are resized to the model's size")
    group.add_argument("--position", choices=POSITIONS, help="position of the clip in the video")
    group.add_argument("--start", type=integer(0), metavar="N", help="first frame of the clip, instead of --position")
    group.add_argument("--stride", type=integer(1), metavar="N", help="distance between the frames of a clip")


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """{name: value} of those of the named options that were given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def preprocessing_changes(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_preprocessing` that were given."""
    return given(args, "resize", "position", "start", "stride")


def add_batch_size(parser: argparse.ArgumentParser, default: int) -> None:
    text = f"clips per batch (default: {default})"
    parser.add_argument("--batch-size", type=integer(1), default=default, metavar="N", help=text)


def add_workers(parser: argparse.ArgumentParser, default: int = 2) -> None:
    text = f"processes that read videos, for each device (default: {default})"
    parser.add_argument("--workers", type=integer(0), default=default, metavar="N", help=text)


def add_seed(parser: argparse.ArgumentParser, default: int | None = 0) -> None:
    parser.add_argument(
        "--seed", type=integer(0, 2**63 - 1), default=default, metavar="N", help="random seed (default: 0)"
    )


def add_episodes(parser: argparse.ArgumentParser, default: EpisodeConfig) -> None:
    add = parser.add_argument
    add("--n-way", type=integer(2), metavar="N", help=f"classes of an episode (default: {default.n_way})")
    add("--k-shot", type=integer(1), metavar="K", help=f"examples of each class (default: {default.k_shot})")
    add("--queries", type=integer(1), metavar="Q", help=f"clips to classify per episode (default: {default.queries})")
    add("--num", type=integer(1), metavar="E", help=f"number of episodes (default: {default.num})")
    add_seed(parser, default=None)
