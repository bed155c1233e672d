"""Cost of the parts of a training step of each stage, with synthetic clips that are read from files as in training.

    python scripts/bench/train.py [--stages proxy spatial stage1 stage2 generator] [--config-size tiny|full]
                                  [--steps 10] [--workers 1] [--threads 1] [--cpu-time] [--profile] [key=value ...]

The parts are: waiting for data; the frozen teacher; forward and losses; backward; optimizers and moving average; and
the rest, such as gradient clipping and moving the batch. The device is synchronized between the parts. Sizes and
batches are those of configs/tiny, or of the UCF-101 configurations with one clip per step. Weights are random,
perceptual networks untrained, and discriminators active from the first step. Warm-up steps are not counted. Overrides
such as train.gradient_checkpointing=true apply to each stage. ACCELERATE_USE_CPU=true does not use a GPU.

`--cpu-time` counts seconds of this process on the CPU, which other load affects less; waiting for data is none.
`--profile` also prints what matrix products, attention and the largest other operations of a step take.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import wraps
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from sweettok import ProxyTokenizer, SweetTok
from sweettok.data.dataset import make_loader
from sweettok.data.lists import clips_hash
from sweettok.data.manifest import TokenManifest
from sweettok.data.synthetic_files import write_synthetic
from sweettok.data.tokens import ShardWriter
from sweettok.priors import Prior, save_prior
from sweettok.stages import STAGES, build_task, load_config
from sweettok.train.config import RunConfig
from sweettok.train.session import Session, make_accelerator, start
from sweettok.train.step import Clock, train_step

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from scripts.bench.ops import OpTimes  # noqa: E402
from scripts.bench.tokenizer import SIZES, random_graph, synchronize  # noqa: E402

FILES = {"tiny": "configs/tiny/{}.yaml", "full": "configs/{}/ucf101.yaml"}
WORDS = {"tiny": {"spatial": (33, 32), "temporal": (28, 21)}, "full": SIZES}
PARTS = ("data", "teacher", "forward", "backward", "update", "rest")
CLIPS, WARM_UP = 16, 2


def prepare(folder: Path, run: RunConfig, size: str) -> None:
    """Write clips, word graphs, a proxy, a tokenizer and token shards with the sizes of a stage-1 configuration."""
    config = run.tokenizer
    write_synthetic(folder / "clips", CLIPS, 1, config.num_frames + 4, (config.height, config.width))
    prior = Prior(**{side: random_graph(*lists) for side, lists in WORDS[size].items()})
    save_prior(prior, folder / "prior")
    proxy = ProxyTokenizer(config.proxy)
    proxy.save_pretrained(folder / "proxy" / "final")
    tokenizer = SweetTok(replace(config, pixel_path="argmax"), prior)
    tokenizer.use_proxy(proxy)
    tokenizer.save_pretrained(folder / "tokenizer")
    keys, labels = [f"clip{i}" for i in range(CLIPS)], [0] * CLIPS
    clips = CLIPS, clips_hash(keys, labels), config.num_frames
    manifest = TokenManifest("tokenized", tokenizer.ids_hash(), tokenizer.layout, *clips, num_classes=101)
    writer = ShardWriter(folder / "tokens", manifest, keys, labels)
    for rows in writer.pending():
        local = [torch.randint(s.vocab_size, (len(rows), s.length)) for s in tokenizer.layout.segments]
        writer.write(rows, tokenizer.layout.to_global(torch.cat(local, dim=1)))


def settings(stage: str, size: str, folder: Path, workers: int) -> list[str]:
    """Overrides that replace the inputs of a configuration by those of `prepare`."""
    clips = folder / ("tokens" if stage == "generator" else "clips/train.txt")
    inputs = {
        "proxy": [],
        "spatial": [f"proxy={folder}/proxy/final", f"prior={folder}/prior", "warm_start=false"],
        "stage1": [f"proxy={folder}/proxy/final", f"prior={folder}/prior", "warm_start=false", "init=null"],
        "stage2": [f"tokenizer={folder}/tokenizer"],
        "generator": ["tokenizer=null", "train.sample_every=0"],
    }
    chosen = [f"data.train={clips}", "data.validation=null", f"data.num_workers={workers}", *inputs[stage]]
    if stage != "generator":
        chosen.append("data.root=null")
    if stage in ("proxy", "stage2"):
        chosen += ["loss.adversarial.start_step=0", "loss.perceptual.untrained=true"]
    if size == "full":
        chosen.append("train.global_batch_size=1")
        if torch.accelerator.current_accelerator(check_available=True) is None:
            chosen.append("train.mixed_precision=no")
    return chosen


class Parts:
    """Seconds of each part, without those of nested parts."""

    def __init__(self, device: torch.device, cpu_time: bool):
        self.device, self.open, self.last = device, [], 0.0
        self.clock = time.process_time if cpu_time else time.perf_counter
        self.seconds: dict[str, float] = defaultdict(float)

    def _tick(self) -> None:
        synchronize(self.device)
        now = self.clock()
        if self.open:
            self.seconds[self.open[-1]] += now - self.last
        self.last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._tick()
        self.open.append(name)
        yield
        self._tick()
        self.open.pop()

    def watch(self, owner: object, method: str, name: str) -> None:
        """Count the time of a method of `owner` as a part."""
        function = getattr(owner, method)

        @wraps(function)
        def watched(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        setattr(owner, method, watched)

    def each(self, iterator: Iterator, name: str) -> Iterator:
        """Yield the items of `iterator`, counting its time as a part."""
        while True:
            with self.part(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item


def watched_session(run: RunConfig, accelerator: Accelerator, parts: Parts) -> tuple[Session, Iterator]:
    """Session and batches for `train_step`, with the time of every part counted."""
    set_seed(run.train.seed)
    task = build_task(run)
    session = start(task, run, accelerator)
    batches = iter(make_loader(task.train_dataset, session.state.sampler, run.data.num_workers))
    losses: Callable[..., Iterator] = task.losses
    task.losses = lambda batch, context: parts.each(losses(batch, context), "forward")
    parts.watch(accelerator, "backward", "backward")
    parts.watch(session.state.ema, "update", "update")
    for trained in task.trained.values():
        parts.watch(trained.optimizer, "step", "update")
    if hasattr(task, "teacher"):
        parts.watch(task.teacher, "encode", "teacher")
    return session, parts.each(batches, "data")


def bench(run: RunConfig, steps: int, cpu_time: bool, profile: bool) -> None:
    """Train a few steps and print their mean times."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = make_accelerator(run.train)
    parts, clock = Parts(accelerator.device, cpu_time), Clock()
    session, batches = watched_session(run, accelerator, parts)
    ops = OpTimes(accelerator.device)
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            parts.seconds.clear()
        with parts.part("rest"), ops if profile and number >= WARM_UP else nullcontext():
            train_step(session, batches, clock)
    total = sum(parts.seconds.values())
    times = " ".join(f"{parts.seconds[name] / steps:8.3f}" for name in PARTS)
    batch = run.train.global_batch_size
    rates = f"{parts.seconds['data'] / total:6.1%} {batch * steps / total:8.2f}"
    print(f"{run.stage:10} {batch:5} {total / steps:8.3f} {times} {rates}", flush=True)
    if profile:
        print(ops.table(steps=steps), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--config-size", choices=FILES, default="tiny")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1, help="processes that read clips")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the process on the CPU")
    parser.add_argument("--profile", action="store_true", help="also seconds and share of groups of operations")
    args, overrides = parser.parse_known_args()
    if wrong := [word for word in overrides if "=" not in word or word.startswith("-")]:
        parser.error(f"neither an option nor key=value: {wrong[0]}")
    torch.set_num_threads(args.threads)
    size, files = args.config_size, ROOT / FILES[args.config_size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        proxy = [*settings("proxy", size, folder, 0), f"train.output_dir={folder}/proxy"]
        earlier = [load_config(str(files).format("proxy"), proxy)]  # whose sizes stage 1 takes
        run = load_config(str(files).format("stage1"), settings("stage1", size, folder, 0), earlier)
        prepare(folder, run, size)
        print(f"{size}, {args.threads} threads, {args.workers} workers, torch {torch.__version__}; seconds per step")
        names = " ".join(f"{name:>8}" for name in ("step", *PARTS))
        print(f"{'':10} clips {names} waited  clips/s")
        for stage in args.stages:
            given = settings(stage, size, folder, args.workers)
            given.append(f"train.output_dir={folder}/{stage}")
            bench(load_config(str(files).format(stage), [*given, *overrides]), args.steps, args.cpu_time, args.profile)


if __name__ == "__main__":
    main()
