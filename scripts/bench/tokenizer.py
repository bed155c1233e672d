"""Cost of the full-size tokenizer: seconds and GFLOP to encode and to decode a clip, relative to the machine's peak.

    python scripts/bench/tokenizer.py [--batch 1] [--repeats 3] [--threads N] [--dtypes fp32 bf16] [--device auto]

Weights are random, on which speed does not depend. The peak is the best rate of a large matrix multiplication, measured
between the passes, so that other load on the machine affects both.
"""

import argparse
import resource
import time
from contextlib import nullcontext

import torch
from torch.utils.flop_counter import FlopCounterMode

from sweettok import SweetTok
from sweettok.priors import Prior, WordGraph
from sweettok.tokenizer.config import TokenizerConfig

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device((accelerator or "cpu") if args.device == "auto" else args.device)
    torch.manual_seed(0)
    config = TokenizerConfig()
    prior = Prior(*(random_graph(*sizes) for sizes in SIZES.values()))
    model = SweetTok(config, prior).eval().to(device)
    video = torch.rand(args.batch, 3, config.num_frames, config.height, config.width, device=device) - 0.5
    ids = model.encode(video).ids
    passes = {"encode": lambda: model.encode(video), "decode": lambda: model.decode(ids)}
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, batch {args.batch}, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'':12} {'s/clip':>8} {'GFLOP/clip':>11} {'GFLOP/s':>9} {'peak':>9} {'share':>6} {'peak GiB':>9}")
    for name in args.dtypes:
        dtype = DTYPES[name]
        autocast = torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()
        for label, run in passes.items():
            with autocast:
                with FlopCounterMode(display=False) as counter:
                    run()
                times, rates = [], []
                for _ in range(args.repeats):
                    rates.append(peak_rate(device, dtype, size=4096 if device.type == "cpu" else 16384))
                    times.append(seconds(run, device))
            gflop, best, peak = counter.get_total_flops() / 1e9, min(times), max(rates)
            print(
                f"{label + ' ' + name:12} {best / args.batch:8.3f} {gflop / args.batch:11.1f} {gflop / best:9.1f} "
                f"{peak:9.1f} {gflop / best / peak:6.1%} {memory(device):9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
