"""Train one stage: python scripts/train.py configs/stage1/ucf101.yaml train.max_steps=100 ..."""

import argparse
import sys

import torch
from accelerate.utils import set_seed

from sweettok.config import RunConfig, load_config
from sweettok.train.loop import fit
from sweettok.train.task import Task


def build_task(run: RunConfig) -> Task:
    if run.stage == "proxy":
        from sweettok.train.proxy import ProxyTask

        return ProxyTask(run)
    if run.stage == "stage1":
        from sweettok.train.stage1 import Stage1Task

        return Stage1Task(run)
    if run.stage == "stage2":
        from sweettok.train.stage2 import Stage2Task

        return Stage2Task(run)
    from sweettok.train.generator import GeneratorTask

    return GeneratorTask(run)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the stage that a configuration file describes.")
    parser.add_argument("config", help="YAML file, as configs/stage1/ucf101.yaml")
    parser.add_argument("overrides", nargs="*", help="settings to change, as train.max_steps=100")
    options = parser.parse_args(arguments)
    try:
        run = load_config(options.config, options.overrides)
        set_seed(run.train.seed)
        fit(build_task(run), run)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
