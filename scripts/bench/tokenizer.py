"""Cost of the full-size tokenizer: seconds and GFLOP to encode and to decode a clip, relative to the machine's peak.

    python scripts/bench/tokenizer.py [--batch 1 4 8] [--frames 17 65 129] [--repeats 3] [--threads N]
                                      [--dtypes fp32 bf16] [--device auto] [--against REVISION] [--profile]

Weights are random, on which speed does not depend. The peak is the best rate of a large matrix multiplication, measured
between the passes, so that other load on the machine affects both. Memory on a CPU is the process's peak so far: give
sizes in increasing order.

`--against` runs the package of another git revision in turn with this one, in one process and with equal weights, and
prints the median ratio of their times, and whether ids are equal. Times are of the process's CPU on a CPU, which other
load on the machine affects less than the clock on the wall.

`--profile` prints the seconds and the share of matrix products, attention, convolutions, and all other operations, and
the lines that cost most outside matrix products and attention; on a CPU, also in seconds of the process.
"""

import argparse
import importlib
import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sweettok import SweetTok
from sweettok.priors import Prior, WordGraph
from sweettok.tokenizer.config import TokenizerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.ops import OpTimes  # noqa: E402

SIZES = {"spatial": (5078, 5403), "temporal": (1872, 9267)}
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def random_graph(num_modifiers: int, num_heads: int, dim: int = 512, degree: int = 12) -> WordGraph:
    modifiers = torch.arange(num_modifiers).repeat_interleave(degree)
    heads = num_modifiers + torch.randint(num_heads, modifiers.shape)
    return WordGraph(
        tuple(f"modifier{i}" for i in range(num_modifiers)),
        tuple(f"head{i}" for i in range(num_heads)),
        torch.randn(num_modifiers + num_heads, dim),
        torch.stack((modifiers, heads)),
    )


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def seconds(run, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def peak_rate(device: torch.device, dtype: torch.dtype | None, size: int, repeats: int = 3) -> float:
    """GFLOP/s of the fastest of a few square matrix multiplications."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype or torch.float32) for _ in range(2))
    seconds(lambda: a @ b, device)
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(repeats)) / 1e9


def memory(device: torch.device) -> float:
    """Peak GiB: of the process on a CPU, of the allocator elsewhere."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.get_device_module(device).max_memory_allocated(device) / 2**30


def make_model(device: torch.device) -> SweetTok:
    torch.manual_seed(0)
    prior = Prior(*(random_graph(*sizes) for sizes in SIZES.values()))
    return SweetTok(TokenizerConfig(), prior).eval().to(device)


def other_model(revision: str, folder: str, model: SweetTok) -> SweetTok:
    """The tokenizer of another revision's package, unpacked in `folder`, with the weights of `model`."""
    command = ["git", "-C", str(Path(__file__).parents[2]), "archive", revision, "sweettok"]
    packed = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    own = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "sweettok"}
    sys.path.insert(0, folder)
    try:
        priors = importlib.import_module("sweettok.priors")
        tokenizer, config = (importlib.import_module(f"sweettok.tokenizer.{name}") for name in ("model", "config"))
        names = ("modifiers", "heads", "vectors", "edges")
        graphs = [[getattr(graph, name) for name in names] for graph in (model.prior.spatial, model.prior.temporal)]
        prior = priors.Prior(*(priors.WordGraph(*graph) for graph in graphs))
        other = tokenizer.SweetTok(config.TokenizerConfig(), prior).eval().to(model.device)
        other.load_state_dict(model.state_dict())
        return other
    finally:
        sys.path.remove(folder)
        for name in [name for name in sys.modules if name.split(".")[0] == "sweettok"]:
            del sys.modules[name]
        sys.modules.update(own)


def passes(model: SweetTok, video: Tensor) -> dict[str, Callable[[], Tensor]]:
    ids = model.encode(video).ids
    return {"encode": lambda: model.encode(video).ids, "decode": lambda: model.decode(ids, video.shape[2])}


def compare(label: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], repeats: int, cpu: bool) -> None:
    """Print the median ratio of the times of two functions that run in turn, and how far their results agree."""
    clock = time.process_time if cpu else time.perf_counter
    results, ratios = (ours(), theirs()), []
    for _ in range(repeats):
        times = []
        for run in (theirs, ours):
            start = clock()
            run().sum().item()
            times.append(clock() - start)
        ratios.append(times[0] / times[1])
    if results[0].is_floating_point():
        agreement = f"largest difference of a pixel {(results[0] - results[1]).abs().max().item():.1e}"
    else:
        agreement = f"{(results[0] == results[1]).float().mean().item():.3%} of ids equal"
    span = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{label:12} {median(ratios):.2f} times as fast, {span} in {repeats} pairs, {agreement}", flush=True)


def bench(model: SweetTok, video: Tensor, args: argparse.Namespace) -> None:
    """Print the costs of encoding and decoding `video`, in every precision."""
    device, batch = video.device, len(video)
    for name in args.dtypes:
        dtype = DTYPES[name]
        autocast = torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()
        for label, run in passes(model, video).items():
            with autocast:
                with FlopCounterMode(display=False) as counter:
                    run()
                times, rates = [], []
                for _ in range(args.repeats):
                    rates.append(peak_rate(device, dtype, size=4096 if device.type == "cpu" else 16384))
                    times.append(seconds(run, device))
            gflop, best, peak = counter.get_total_flops() / 1e9, min(times), max(rates)
            print(
                f"{label + ' ' + name:12} {batch:5} {video.shape[2]:6} {best / batch:8.3f} {gflop / batch:11.1f} "
                f"{gflop / best:9.1f} {peak:9.1f} {gflop / best / peak:6.1%} {memory(device):9.2f}",
                flush=True,
            )


def profile(model: SweetTok, video: Tensor, dtypes: list[str]) -> None:
    """Print what each group of operations takes."""
    for name in dtypes:
        for label, run in passes(model, video).items():
            with torch.autocast(video.device.type, dtype=DTYPES[name]) if DTYPES[name] else nullcontext():
                run()
                with OpTimes(video.device) as times:
                    run()
            print(f"{label} {name}, {len(video)} clips of {video.shape[2]} frames\n{times.table()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--frames", type=int, nargs="+", default=[TokenizerConfig().num_frames])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--against", metavar="REVISION", help="a git revision to compare the speed with, in fp32")
    parser.add_argument("--profile", action="store_true", help="seconds and share of groups of operations")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device((accelerator or "cpu") if args.device == "auto" else args.device)
    model, config = make_model(device), TokenizerConfig()
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    clips = (
        torch.rand(batch, 3, frames, config.height, config.width, device=device) - 0.5
        for batch in args.batch
        for frames in args.frames
    )
    if args.against:
        with tempfile.TemporaryDirectory() as folder:
            other = other_model(args.against, folder, model)
            for video in clips:
                ours, theirs = passes(model, video), passes(other, video)
                for label in ours:
                    compare(label, ours[label], theirs[label], args.repeats, device.type == "cpu")
        return
    if args.profile:
        for video in clips:
            profile(model, video, args.dtypes)
        return
    names = f"{'s/clip':>8} {'GFLOP/clip':>11} {'GFLOP/s':>9} {'peak':>9} {'share':>6} {'peak GiB':>9}"
    print(f"{'':12} clips frames {names}")
    for video in clips:
        bench(model, video, args)


if __name__ == "__main__":
    main()
