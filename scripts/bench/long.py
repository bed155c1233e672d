"""Cost of a long video: memory and time of `encode_long`, compared with `encode` of its clips; and its seams.

    python scripts/bench/long.py [--minutes 10] [--checkpoint DIR] [--size 96 128] [--batch 4] [--rounds 10]

The video consists of synthetic clips, 25 frames per second. The tokenizer is that of configs/tiny with random weights,
on which speed and memory do not depend, unless --checkpoint is given. "Plain encode" encodes clips without overlap,
read in the same way while the previous batch is encoded.

Times are medians over the rounds for the first minute of video, in wall-clock seconds and in processor seconds of all
threads. The functions run in turn in each round, and in reverse order in every second one, so that other load affects
all of them. Memory is the resident set while the whole file is encoded, sampled ten times per second. Seams (in grey
levels, see `seam_metric`) of the first minute are measured only with --checkpoint.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from threading import Event, Thread

import torch
from torch import Tensor

from sweettok import SweetTok, load_config
from sweettok.data.synthetic import synthetic_clip
from sweettok.data.writer import write_video
from sweettok.priors import Prior, WordGraph
from sweettok.video.chunks import ClipCutter
from sweettok.video.long import batched, one_ahead
from sweettok.video.seams import FrameSteps, seam_excess

ROOT = Path(__file__).resolve().parents[2]
FPS, CLIP, DIFFERENT = 25, 50, 20  # frames per second, frames of a synthetic clip, number of different clips
MINUTE = 60 * FPS
PAGES = 4096 / 2**20  # MiB per page


class Memory:
    """Context that records the resident memory of this process in MiB."""

    def __enter__(self) -> "Memory":
        self.seen, self.done = [], Event()
        self.thread = Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.1):
            self.seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGES)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def peaks(self) -> str:
        """Text with the peak of each quarter of the time."""
        quarter = max(1, len(self.seen) // 4)
        peaks = [max(self.seen[part * quarter : (part + 1) * quarter], default=0) for part in range(4)]
        return f"{' / '.join(f'{peak:.1f}' for peak in peaks)} MiB, last over first {peaks[3] / peaks[0]:.4f}"


def random_tokenizer() -> SweetTok:
    def graph(modifiers: int, heads: int) -> WordGraph:
        names = tuple(f"modifier{i}" for i in range(modifiers)), tuple(f"head{i}" for i in range(heads))
        edges = torch.stack((torch.arange(modifiers), modifiers + torch.arange(modifiers) % heads))
        return WordGraph(*names, torch.randn(modifiers + heads, 32), edges)

    torch.manual_seed(0)
    proxy = load_config("configs/tiny/proxy.yaml")
    config = load_config("configs/tiny/stage1.yaml", earlier=[proxy]).tokenizer
    return SweetTok(config, Prior(graph(33, 32), graph(28, 21))).eval()


def draw(path: Path, minutes: float, size: tuple[int, int]) -> None:
    clips = [synthetic_clip(number, CLIP, max(size)).video[:, :, : size[0], : size[1]] for number in range(DIFFERENT)]

    def blocks() -> Iterator[Tensor]:
        for number in range(round(minutes * 60 * FPS / CLIP)):
            yield clips[number % DIFFERENT]

    write_video(path, blocks(), FPS)


def plain(tokenizer: SweetTok, path: Path, batch_size: int) -> None:
    with tokenizer.open_long(path, None, None, MINUTE) as (stream, _):
        clips = ClipCutter(stream.frames, tokenizer.clip_frames, overlap=0)
        with closing(one_ahead(batched(clips, batch_size))) as batches:
            for batch in batches:
                tokenizer.encode(batch).ids.cpu()


def read(tokenizer: SweetTok, path: Path) -> None:
    with tokenizer.open_long(path, None, None, MINUTE) as (stream, _):
        for _ in stream.frames:
            pass


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock seconds, and processor seconds of all threads."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def seams(tokenizer: SweetTok, path: Path) -> None:
    for overlap in sorted({0, 1, 2, tokenizer.clip_frames // 2}):
        tokens = tokenizer.encode_long(path, overlap, max_frames=MINUTE)
        steps, original = FrameSteps(), FrameSteps()
        with tokenizer.open_long(path, None, None, MINUTE) as (stream, _):
            for frame in stream.frames:
                original.add(frame[:, None])
        for block in tokenizer.decode_blocks(tokens, undo_resize=False):
            steps.add(block)
        excess = seam_excess(steps.values, tokens.chunks, original.values)
        means = f"between all frames {steps.values.mean():.3f}, in the source {original.values.mean():.3f}"
        print(f"seams, overlap {overlap}: {excess:+.3f} grey levels; {means}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    tokenizer = SweetTok.from_pretrained(args.checkpoint) if args.checkpoint else random_tokenizer()
    tokenizer = tokenizer.to(accelerator or "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        draw(path, args.minutes, tuple(args.size))
        tokenizer.encode_long(path, batch_size=args.batch, max_frames=20 * FPS)  # warm-up
        print(f"{tokenizer.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        with Memory() as memory:
            tokens = tokenizer.encode_long(path, batch_size=args.batch)
        print(f"{tokens}\npeak memory by quarters of the time: {memory.peaks()}", flush=True)
        compare(tokenizer, path, args.batch, args.rounds)
        if args.checkpoint:
            seams(tokenizer, path)


def compare(tokenizer: SweetTok, path: Path, batch_size: int, rounds: int) -> None:
    """Print the median seconds of each function, and the ratios."""
    tokens = tokenizer.encode_long(path, batch_size=batch_size, max_frames=MINUTE)
    works = {
        "encode_long": lambda: tokenizer.encode_long(path, batch_size=batch_size, max_frames=MINUTE),
        "plain encode": lambda: plain(tokenizer, path, batch_size),
        "reading alone": lambda: read(tokenizer, path),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            taken[name].append(seconds(works[name]))
    middle = {name: [median(each) for each in zip(*runs, strict=True)] for name, runs in taken.items()}
    for name, (clock, processor) in middle.items():
        each = clock / tokens.seconds, processor / tokens.seconds
        print(f"{name:14} {each[0]:.4f} s, {each[1]:.4f} processor s per second of video")
    ratios = [long / short for long, short in zip(middle["encode_long"], middle["plain encode"], strict=True)]
    plain_clips = -(-tokens.chunks.num_frames // tokens.chunks.length)
    clips = f"{len(tokens.ids)} / {plain_clips} = {len(tokens.ids) / plain_clips:.3f}"
    print(f"encode_long / plain encode: {ratios[0]:.3f} in wall-clock s, {ratios[1]:.3f} in processor s; clips {clips}")


if __name__ == "__main__":
    main()
