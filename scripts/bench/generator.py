"""Cost of sampling: seconds per word and words per second, compared with recomputing and with memory bandwidth.

    python scripts/bench/generator.py [--dim 768] [--layers 12] [--heads 12] [--batches 1 4 16] [--threads 1] [--clip]

Times are those of `Generator.sample`, for a few words after a cache that is filled up to some position; the time of a
whole run is their integral. "Recomputing" runs the whole sequence for each word, without a cache. The lower bound is
the number of bytes of weights and cache that a word needs, divided by the bandwidth of this machine, which is measured
next to each time as the best rate of a sum over a large tensor. `--clip` also samples a whole clip of 3,840 words.
Weights are random.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import torch

from sweettok import Generator, TokenLayout
from sweettok.generator import model as module
from sweettok.generator.config import GeneratorConfig

PLACES = (16, 128, 256, 512, 1024, 2048, 3820)
LENGTHS = (128, 512, 3840)
FEW = {"num_spatial": 2, "num_temporal": 4}  # 18 words, sampled after the filled cache


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes per second of the fastest of a few sums."""
    x = torch.ones(megabytes * 2**18, device=device)
    times = []
    for _ in range(4):
        synchronize(device)
        start = time.perf_counter()
        x.sum()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 4 * x.numel() / min(times)


class FilledCache(module.Cache):
    """A cache in which `filled` positions are already used."""

    def __init__(self, num_layers: int, length: int, *, filled: int, shape: tuple[int, int, int], weight: torch.Tensor):
        super().__init__(num_layers, filled + length)
        batch, heads, width = shape
        self.past = filled
        self.layers = [
            tuple(torch.randn(batch, heads, self.length, width).to(weight) for _ in range(2)) for _ in range(num_layers)
        ]


def step_seconds(model: Generator, batch: int, guided: bool, past: int, device: torch.device) -> float:
    """Median seconds per word after `past` positions."""
    config, full, stamps = model.config, model.sequence, []

    def stamp(_: int) -> None:
        synchronize(device)
        stamps.append(time.perf_counter())

    rows = 2 * batch if guided else batch
    cache = partial(
        FilledCache, filled=past, shape=(rows, config.num_heads, config.head_dim), weight=model.transformer.norm.weight
    )
    model.sequence = replace(full, layout=replace(full.layout, **FEW))
    with patch.object(module, "Cache", cache):
        scale = 1.5 if guided else 1.0
        model.sample([0] * batch, cfg_scale=scale, top_k=4096, top_p=0.9, progress=stamp)
    model.sequence = full
    return float(np.median(np.diff(stamps)))


def recomputed_seconds(model: Generator, batch: int, past: int, device: torch.device) -> float:
    ids = torch.randint(model.sequence.word_start, (batch, past + 1), device=device)
    synchronize(device)
    start = time.perf_counter()
    with torch.no_grad():
        model.transformer.logits(model.transformer(ids)[:, -1])
    synchronize(device)
    return time.perf_counter() - start


def floor_bytes(model: Generator, rows: int, past: int) -> float:
    """Bytes of the layers' weights, the head's rows (mean over the segments) and the cache."""
    size = model.transformer.norm.weight.element_size()
    segments = model.sequence.layout.segments
    head = sum(s.length * s.vocab_size for s in segments) / model.sequence.layout.length * model.config.dim
    weights = sum(param.numel() for param in model.transformer.blocks.parameters()) + head
    return size * (weights + 2 * model.config.num_layers * rows * past * model.config.dim)


def integral(places: tuple[int, ...], seconds: list[float], length: int) -> float:
    grid = np.arange(length)
    return float(np.interp(grid, places, seconds).sum())


def bench(model: Generator, batch: int, guided: bool, device: torch.device) -> list[float]:
    rows, seconds = 2 * batch if guided else batch, []
    label = f"batch {batch}{' guided' if guided else ''}"
    for past in PLACES:
        rate = bandwidth(device)
        seconds.append(step_seconds(model, batch, guided, past, device))
        floor = floor_bytes(model, rows, past) / rate
        print(
            f"{label:16} past {past:5} {1e3 * seconds[-1]:8.1f} ms per word, lower bound {1e3 * floor:7.1f} ms "
            f"({rate / 1e9:.1f} GB/s), {seconds[-1] / floor:.2f}x",
            flush=True,
        )
    rates = ", ".join(f"{n}: {batch * n / integral(PLACES, seconds, n):.1f}" for n in LENGTHS)
    growth = seconds[PLACES.index(512)] / seconds[0] - 1
    print(f"{label:16} words/s over a run of {rates}; past 512 against past 16: {growth:+.0%}", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clip", action="store_true", help="also sample a whole clip")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device((accelerator or "cpu") if args.device == "auto" else args.device)
    torch.manual_seed(0)
    sizes = {"dim": args.dim, "num_layers": args.layers, "num_heads": args.heads}
    model = Generator(GeneratorConfig(**sizes, layout=TokenLayout(), num_classes=101))
    model = model.to(device, getattr(torch, args.dtype)).eval()
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {args.dtype}, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        flush=True,
    )
    for batch in args.batches:
        plain, guided = (bench(model, batch, guided, device) for guided in (False, True))
        ratios = ", ".join(f"{past}: {b / a:.2f}x" for past, a, b in zip(PLACES, plain, guided, strict=True))
        print(f"batch {batch:2} guidance costs, at past {ratios}", flush=True)
        if device.type == "cpu" and 2 < batch <= 16:
            with patch.object(module.Linear, "BLOCK", 1 << 30):
                undivided = step_seconds(model, batch, False, PLACES[0], device)
            print(f"batch {batch:2} with unsplit weights, {undivided / plain[0]:.2f}x at past {PLACES[0]}")
        few = [past for past in PLACES if past <= 512]
        again = [recomputed_seconds(model, batch, past, device) for past in few]
        gains = ", ".join(f"{n}: {integral(few, again, n) / integral(PLACES, plain, n):.1f}x" for n in (128, 512))
        print(f"batch {batch:2} the cache is faster than recomputing, over {gains}", flush=True)
    if args.clip:
        rate, start = bandwidth(device), time.perf_counter()
        model.sample([0], top_k=4096, top_p=0.9)
        synchronize(device)
        seconds = time.perf_counter() - start
        floor = sum(floor_bytes(model, 1, past) for past in range(model.sequence.layout.length)) / rate
        print(
            f"a clip of {model.sequence.layout.length} words: {seconds:.1f} s, lower bound {floor:.1f} s, "
            f"{seconds / floor:.2f}x"
        )


if __name__ == "__main__":
    main()
