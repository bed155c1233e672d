"""`sweettok plan`: steps, parameters, FLOPs and memory of training runs, without starting them."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from sweettok.stages import load_config
from sweettok.stages.plan import Plan, plan
from sweettok.store import check_output, write_aside


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="CONFIG|key=value",
        help="configuration files in the order of training, and settings to change in all of them",
    )
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="number of devices (default: 1)")
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="memory of a device: plan with the largest micro-batch that fits"
    )
    parser.add_argument(
        "--sharded", action="store_true", help="shard the weights, as configs/accelerate/fsdp.yaml does"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the plans to a JSON file")


def run(args: argparse.Namespace) -> None:
    paths = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    if not paths:
        raise ValueError("give a configuration file, such as configs/stage1/ucf101.yaml")
    if args.devices < 1 or (args.memory is not None and not args.memory > 0):
        raise ValueError(f"--devices and --memory must be above 0; got {args.devices} and {args.memory}")
    if args.json:
        check_output(args.json, suffixes=(".json",), inputs=paths)
    runs = []
    for path in paths:
        runs.append(load_config(path, overrides, earlier=runs))
    memory = None if args.memory is None else args.memory * 1e9
    plans = {}
    for path, config in zip(paths, runs, strict=True):
        plans[path] = plan(config, args.devices, memory, args.sharded, runs)
        print(summary(path, plans[path]), flush=True)
    if args.json:
        numbers = {path: dataclasses.asdict(planned) for path, planned in plans.items()}
        with write_aside(args.json) as aside:
            aside.write_text(json.dumps({"kind": "plan", "plans": numbers}, indent=1), encoding="utf-8")


def summary(name: str, planned: Plan) -> str:
    """The plan as text."""

    def listed(sizes: dict[str, int], unit: float) -> str:
        return ", ".join(f"{part} {size / unit:,.2f}" for part, size in sizes.items())

    share = planned.share
    epochs = f"{planned.epochs:,.1f} epochs" if planned.epochs is not None else "epochs unknown"
    rows = {
        "steps": f"{planned.steps:,} of {share.global_batch:,} clips: {planned.devices} devices "
        f"x {share.micro_batches} micro-batches x {share.micro_batch} clips",
        "data": f"{planned.clips:,} clips ({epochs}), {planned.clips * planned.tokens_per_clip:.4g} tokens "
        f"({planned.tokens_per_clip:,} a clip)",
        "trained": f"millions of parameters: {listed(planned.trained, 1e6)}",
        "frozen": f"millions of parameters: {planned.frozen / 1e6:,.2f}",
        "compute": f"{planned.flops / 1e12:,.4g} TFLOP a step, "
        f"{planned.flops / share.global_batch / 1e12:,.4g} a clip, {planned.flops * planned.steps:.3g} FLOP in all",
        "memory": f"{planned.bytes / 1e9:,.2f} GB a device: {listed(planned.memory, 1e9)}",
    }
    lines = [f"{name}: {planned.stage}", *(f"  {label:8} {text}" for label, text in rows.items())]
    return "\n".join([*lines, *(f"  note: {note}" for note in planned.notes)])
