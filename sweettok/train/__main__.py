"""Command line: python -m sweettok.train plan."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from sweettok.commands import report_errors
from sweettok.stages import load_config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweettok.train", description="Before a training: what it takes.")
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="steps, clips, parameters, work and memory; nothing is started or read")
    plan.add_argument("words", nargs="+", metavar="CONFIG|key=value", help="YAML files, as configs/stage1/ucf101.yaml, "
                      "of which one may need what another makes; settings to change in each")  # fmt: skip
    plan.add_argument("--devices", type=int, default=1, metavar="N", help="processes that share the batch (default: 1)")
    plan.add_argument("--memory", type=float, metavar="GB", help="of a device: take the largest micro-batch that fits")
    plan.add_argument("--sharded", action="store_true", help="weights shared out (configs/accelerate/fsdp.yaml)")
    plan.add_argument("--json", metavar="FILE", help="write the numbers here too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; problems of the input become one line on stderr and exit code 1."""
    args = _parser().parse_args(argv)
    return report_errors(lambda: COMMANDS[args.command](args))


def _plan(args: argparse.Namespace) -> int:
    from sweettok.stages.plan import plan, summary

    paths = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    if not paths:
        raise ValueError("give the configuration file too, as configs/stage1/ucf101.yaml")
    if args.devices < 1 or (args.memory is not None and args.memory <= 0):
        raise ValueError(f"devices and memory must be above 0; got {args.devices} and {args.memory}")
    runs = [load_config(path, overrides) for path in paths]
    memory = None if args.memory is None else args.memory * 1e9
    plans = {}
    for path, run in zip(paths, runs, strict=True):
        plans[path] = plan(run, args.devices, memory, args.sharded, runs)
        print(summary(path, plans[path]), flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({path: dataclasses.asdict(planned) for path, planned in plans.items()}, file, indent=1)
    return 0


COMMANDS = {"plan": _plan}

if __name__ == "__main__":
    sys.exit(main())
