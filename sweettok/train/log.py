"""What a run reports: a JSONL file always, a console line, and trackers on request."""

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sweettok.store import write_aside

Writer = Callable[[int, Mapping[str, float]], None]


class Log:
    """Writes scalars of a run to `<output_dir>/log.jsonl`, to the console and to trackers.

    step: the steps that are done; lines of later steps, from before an interruption, are dropped.
    trackers: any of "wandb" and "tensorboard", with `tracker_id` the run's identity from its checkpoint, if it has one;
        a run that was broken off before its first has it from `<output_dir>/tracker_id`.
    active: false on all processes but one, where every method does nothing.
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
        self.path = output_dir / "log.jsonl"
        self.active = active
        self.tracker_id = tracker_id or _kept_id(output_dir)
        self._closers: list[Callable[[], None]] = []
        self._trackers: list[Writer] = []
        self._bar = tqdm(total=max_steps, initial=step, unit="step", disable=None if active else True)
        self._closers.append(self._bar.close)
        if active:
            with write_aside(output_dir / "tracker_id") as aside:
                aside.write_text(self.tracker_id + "\n")
            makers = {"wandb": self._wandb, "tensorboard": self._tensorboard}
            self._trackers = [makers[name](output_dir, step, project, config or {}) for name in trackers]
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
        """Whether a value of that step whose name begins so was written, in this run or before an interruption."""
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
        for close in self._closers:
            close()

    def _wandb(self, output_dir: Path, step: int, project: str, config: Mapping[str, Any]) -> Writer:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("train.trackers names wandb, not installed here: pip install wandb") from error
        name = output_dir.resolve().name
        run = wandb.init(
            project=project, name=name, id=self.tracker_id, resume="allow", dir=str(output_dir), config=dict(config)
        )
        self._closers.append(run.finish)
        return lambda step, values: run.log(dict(values), step=step)

    def _tensorboard(self, output_dir: Path, step: int, project: str, config: Mapping[str, Any]) -> Writer:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("train.trackers names tensorboard, not installed here: pip install tensorboard") from error
        writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=step + 1)
        self._closers.append(writer.close)

        def write(step: int, values: Mapping[str, float]) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)

        return write


_SHOWN = ("train/loss/", "eval/", "lr/", "clips_per_second")


def drop_after(path: Path, step: int) -> None:
    """Remove the lines of steps beyond `step`, and a last line cut short by a kill, from a JSONL file; none is fine."""
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
