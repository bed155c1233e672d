"""What a run reports: a JSONL file always, lines on the console, and trackers if asked for."""

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
from typing import Any

from tqdm import tqdm

from sweettok.store import write_aside

Writer = Callable[[int, Mapping[str, float]], None]
_SHOWN = ("train/loss/", "eval/", "lr/", "clips_per_second")  # on the console


class Log:
    """Writes scalars of a run to `<output_dir>/log.jsonl`, to the console and to trackers.

    Args:
        active: false on all processes but one, where every method does nothing.
        step: the steps that are done; lines of later steps, from before an interruption, are removed.
        trackers: any of "wandb" and "tensorboard".
        tracker_id: the run's identity from its checkpoint; without one, that in `<output_dir>/tracker_id` or a new one.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        active: bool,
        step: int,
        max_steps: int,
        trackers: tuple[str, ...] = (),
        project: str = "",
        config: Mapping[str, Any] | None = None,
        tracker_id: str | None = None,
    ):
        self.path, self.active = output_dir / "log.jsonl", active
        self.tracker_id = tracker_id or _kept_id(output_dir)
        self._closing, self._trackers = ExitStack(), []
        self._bar = self._closing.enter_context(
            tqdm(total=max_steps, initial=step, unit="step", disable=None if active else True)
        )
        if active:
            with write_aside(output_dir / "tracker_id") as aside:
                aside.write_text(self.tracker_id + "\n")
            makers = {"wandb": self._wandb, "tensorboard": self._tensorboard}
            self._trackers: list[Writer] = [makers[name](output_dir, step, project, config or {}) for name in trackers]
            drop_after(self.path, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars under the number of steps done. What is not finite becomes null in the file."""
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
        """Whether the file has a value of that step whose name begins so."""
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

    def _wandb(self, output_dir: Path, step: int, project: str, config: Mapping[str, Any]) -> Writer:
        name, settings = output_dir.resolve().name, {"project": project, "dir": str(output_dir), "config": dict(config)}
        run = _tracker("wandb", "wandb").init(name=name, id=self.tracker_id, resume="allow", **settings)
        self._closing.callback(run.finish)
        return lambda step, values: run.log(dict(values), step=step)

    def _tensorboard(self, output_dir: Path, step: int, project: str, config: Mapping[str, Any]) -> Writer:
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
    """Remove the lines of steps beyond `step`, and a last line cut short by a kill, from a JSONL file, if it exists."""
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


def _kept_id(output_dir: Path) -> str:
    path = output_dir / "tracker_id"
    return path.read_text().strip() if path.is_file() else secrets.token_hex(4)
