"""The log of a run: a JSONL file, lines on the console, and trackers."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from sweettok.config import to_dict
from sweettok.distributed import rank
from sweettok.store import write_aside
from sweettok.train.config import RunConfig

Writer = Callable[[int, Mapping[str, float]], None]
_SHOWN = ("train/loss/", "eval/", "lr/", "clips_per_second")  # on the console


class Log:
    """Writes scalars of a run to `<output_dir>/log.jsonl`, to the console and to trackers.

    Does nothing on other processes than the main one. `step` is the number of finished steps; lines of later steps,
    from before an interruption, are removed from the file.
    """

    def __init__(self, run: RunConfig, step: int):
        output_dir, self.active = Path(run.train.output_dir), rank() == 0
        self.path, self._closing, self._trackers = output_dir / "log.jsonl", ExitStack(), []
        bar = tqdm(total=run.train.max_steps, initial=step, unit="step", disable=None if self.active else True)
        self._bar = self._closing.enter_context(bar)
        if self.active:
            makers = {"wandb": self._wandb, "tensorboard": self._tensorboard}
            self._trackers: list[Writer] = [makers[name](run, output_dir, step) for name in run.train.trackers]
            drop_after(self.path, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars with the number of finished steps. In the file, non-finite values are null."""
        if not self.active:
            return
        line = {"step": step, "time": round(time.time(), 3), **values}
        line = {key: value if math.isfinite(value) else None for key, value in line.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker(step, values)
        shown = [f"{key.removeprefix('train/')} {value:.4g}" for key, value in values.items() if key.startswith(_SHOWN)]
        self.note(f"step {step}/{self._bar.total}: {'  '.join(shown)}")

    def has(self, step: int, prefix: str) -> bool:
        """Whether the file has a scalar of that step whose name starts with `prefix`."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        entries = (json.loads(line) for line in reversed(lines))
        return any(entry["step"] == step and any(key.startswith(prefix) for key in entry) for entry in entries)

    def note(self, text: str) -> None:
        """Show a line on the console."""
        if self.active:
            self._bar.write(text)

    def advance(self) -> None:
        """Count one step on the progress bar."""
        self._bar.update()

    def close(self) -> None:
        """Finish the bar and the trackers."""
        self._closing.close()

    def _wandb(self, run: RunConfig, output_dir: Path, step: int) -> Writer:
        wandb, path = _tracker("wandb", "wandb"), output_dir / "tracker_id"
        if not path.is_file():  # a resumed run keeps its id
            with write_aside(path) as aside:
                aside.write_text(secrets.token_hex(4) + "\n")
        settings = {"project": run.train.project, "dir": str(output_dir), "config": to_dict(run), "resume": "allow"}
        logged = wandb.init(name=output_dir.resolve().name, id=path.read_text().strip(), **settings)
        self._closing.callback(logged.finish)
        return lambda step, values: logged.log(dict(values), step=step)

    def _tensorboard(self, run: RunConfig, output_dir: Path, step: int) -> Writer:
        module = _tracker("tensorboard", "torch.utils.tensorboard")
        writer = module.SummaryWriter(str(output_dir / "tensorboard"), purge_step=step + 1)
        self._closing.callback(writer.close)
        return lambda step, values: [writer.add_scalar(key, value, step) for key, value in values.items()]


def _tracker(name: str, module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"train.trackers names {name}, which is not installed: pip install {name}") from error


def drop_after(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, and an incomplete last line, from a JSONL file, if it exists."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["step"] <= step and line.endswith("\n"):
            kept.append(line)
    with write_aside(path) as aside:
        aside.write_text("".join(kept))
