"""Cost of an evaluation: clips per second of each part and of the whole, and peak memory for few and for many clips.

    python scripts/bench/eval.py [--clips 16] [--size 64] [--frames 17] [--workers 2] [--repeats 2]
                                  [--memory 64 512]
    python scripts/bench/eval.py --against REV [--clips 16] [--size 64] [--frames 17] [--repeats 5]

Clips are synthetic files. The tokenizer (unless --checkpoint is given) and I3D have random weights, on which speed does
not depend. Memory is measured over a whole rfvd in a separate process, with pooling to 400 values instead of I3D to
save time. With --against only whole runs of rfvd without a detector are measured: by this revision, by it with a cache
of an earlier run, and by REV, each in a process of its own with one thread; they take turns, and clips are read by the
process that scores them.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState

from sweettok import ProxyTokenizer
from sweettok.data.synthetic import synthetic_clip
from sweettok.data.writer import write_video
from sweettok.eval.features import EXTRACTORS, I3DFeatures, detector_frames
from sweettok.eval.frechet import FeatureStats, frechet_distance
from sweettok.eval.i3d import I3D
from sweettok.eval.pipeline import Options, collect
from sweettok.eval.protocol import PRESETS
from sweettok.eval.reconstruction import Scorer, reconstructed
from sweettok.eval.rfvd import run
from sweettok.eval.sources import open_tokenizer
from sweettok.eval.tokenizers import load_tokenizer
from sweettok.proxy.config import BlockConfig, ProxyConfig

PROTOCOL = PRESETS["exact"]


class Pooled:
    """Feature extractor: 400 mean values of a clip."""

    width, min_frames = 400, 1

    def to(self, device: torch.device) -> "Pooled":
        return self

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool3d(frames.float().mean(-1)[:, None], (4, 10, 10)).flatten(1)


def small_tokenizer(frames: int, size: int) -> ProxyTokenizer:
    block = BlockConfig(dim=64, num_heads=2, head_dim=32, window_size=2)
    config = ProxyConfig(
        num_frames=frames,
        height=size,
        width=size,
        patch_size=8,
        temporal_patch_size=4,
        block=block,
        encoder_spatial="tw",
        encoder_temporal="tt",
        decoder_temporal="tt",
        decoder_spatial="tt",
        num_codes=256,
        code_dim=8,
    )
    return ProxyTokenizer(config).eval()


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def rate(name: str, clips: int, repeats: int, work: Callable[[], None], device: torch.device) -> None:
    """Print the speed of the fastest of a few runs."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    print(f"{name:34} {clips / min(times):9.2f} clips/s {1000 * min(times) / clips:9.1f} ms/clip", flush=True)


def speeds(folder: Path, checkpoint: Path, args: argparse.Namespace, state: PartialState) -> None:
    source, protocol = open_tokenizer(checkpoint, folder / "clips", PROTOCOL.filled(num_real=args.clips))
    tokenizer = load_tokenizer(checkpoint).to(state.device)
    options = Options(batch_size=args.batch, workers=args.workers)
    i3d = I3DFeatures(I3D(1e-3), "stretch", True).to(state.device)

    def read():
        return options.batches(source.real, "clips")

    count, loaded = args.clips, list(read())
    pairs = list(reconstructed(loaded, tokenizer, protocol))
    frames = [detector_frames(pair["fake"], protocol, True) for pair in pairs]
    i3d(frames[0])
    parts = {
        f"read ({args.workers} workers)": lambda: list(read()),
        "encode and decode": lambda: list(reconstructed(loaded, tokenizer, protocol)),
        "PSNR, SSIM, motion, checks": lambda: collect(pairs, Scorer(protocol)),
        "I3D, one side": lambda: [i3d(each) for each in frames],
        "everything, I3D on both sides": lambda: collect(
            reconstructed(read(), tokenizer, protocol), Scorer(protocol, i3d)
        ),
    }
    for name, work in parts.items():
        with torch.no_grad():
            rate(name, count, args.repeats, work, state.device)
    sides = [FeatureStats(), FeatureStats()]
    for side in sides:
        side.update(torch.randn(2048, 400))
    start = time.perf_counter()
    frechet_distance(*sides)
    print(f"{'one distance of 400 features':34} {time.perf_counter() - start:9.2f} s")


def memory_of(count: int, folder: Path, checkpoint: Path, args: argparse.Namespace) -> None:
    """Run a whole rfvd of `count` clips and print the peak memory of the process in MiB."""
    EXTRACTORS["pooled"] = lambda path, protocol: Pooled()
    source, protocol = open_tokenizer(checkpoint, folder / "clips", PROTOCOL.filled(num_real=count, detector="pooled"))
    run(source, protocol, Options(i3d=checkpoint / "config.json", batch_size=args.batch, workers=0))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


WHOLE = """
import sys, time, torch
torch.hub.get_dir = lambda: sys.argv[1]  # no weights of detectors
from accelerate import PartialState
from sweettok.eval.pipeline import Options
from sweettok.eval.protocol import PRESETS
from sweettok.eval.rfvd import run
from sweettok.eval.sources import open_tokenizer
PartialState(cpu=True)
sets, protocol = open_tokenizer(sys.argv[1] + "/tokenizer", sys.argv[1] + "/clips", PRESETS["exact"])
for line in sys.stdin:
    start = time.perf_counter(), time.process_time()
    run(sets, protocol, Options(cache=sys.argv[2] or None, workers=0))
    print(time.perf_counter() - start[0], time.process_time() - start[1], flush=True)
"""


def compare(folder: Path, clips: int, repeats: int, revision: str) -> None:
    """Print the time of rfvd now, with a cache, and at another revision, and the median ratios of neighbouring runs."""
    root, old = Path(__file__).resolve().parents[2], folder / "before"
    command = ["git", "-C", str(root), "archive", revision, "sweettok", "configs"]
    archive = subprocess.run(command, check=True, capture_output=True)
    old.mkdir()
    subprocess.run(["tar", "-x", "-C", str(old)], input=archive.stdout, check=True)
    processes = {}
    for name, tree, cache in (("before", old, ""), ("now", root, ""), ("now, cached", root, str(folder / "cache"))):
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WHOLE, str(folder), cache]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        processes[name] = subprocess.Popen(command, text=True, env=environment, cwd=tree, **pipes)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    for turn in range(repeats + 1):  # the first is not counted
        for name, process in list(processes.items())[:: 1 if turn % 2 else -1]:
            process.stdin.write("run\n")
            process.stdin.flush()
            times[name].append(tuple(map(float, process.stdout.readline().split())))
    for name, found in times.items():
        processes[name].stdin.close()
        pairs = list(zip(times["before"][1:], found[1:], strict=True))
        wall, cpu = (statistics.median(old[i] / own[i] for old, own in pairs) for i in range(2))
        seconds = statistics.median(own[0] for _, own in pairs)
        print(f"{name:12} {clips / seconds:8.2f} clips/s, {wall:5.2f} times as fast, by processor time {cpu:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--memory", type=int, nargs="*", default=[64, 512])
    parser.add_argument("--checkpoint", type=Path, help="folder of a tokenizer; sets frames and size")
    parser.add_argument("--against", metavar="REV", help="compare whole runs of rfvd with this revision")
    parser.add_argument("--inside", nargs=2, metavar=("COUNT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        memory_of(int(args.inside[0]), Path(args.inside[1]), args.checkpoint, args)
        return
    state = PartialState()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = args.checkpoint or folder / "tokenizer"
        if args.checkpoint is None:
            small_tokenizer(args.frames, args.size).save_pretrained(checkpoint)
        config = load_tokenizer(checkpoint).config
        for number in range(max(args.clips, *([] if args.against else args.memory), 0)):
            clip = synthetic_clip(number, config.num_frames + 8, config.height)
            write_video(folder / "clips" / f"{number:05d}.mp4", clip.video, 12)
        clips = f"{config.num_frames}x{config.height}x{config.width}, batch {args.batch}"
        print(f"{clips}, {state.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        if args.against:
            compare(folder, args.clips, args.repeats, args.against)
            return
        speeds(folder, checkpoint, args, state)
        for count in args.memory:
            command = [sys.executable, __file__, "--inside", str(count), str(folder), "--checkpoint", str(checkpoint)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"peak memory of rfvd, {count:5} clips {done.stdout.strip():>9} MiB", flush=True)


if __name__ == "__main__":
    main()
