"""Cost of VTok: encoding and prefill of the language model, against naive frame sampling at the same rate.

    python scripts/bench/vtok.py [--seconds 5 60 600] [--rounds 5] [--size 64] [--computed-only]

Naive sampling gives S tokens of each sampled frame, VTok S of the first and one of each other. Both read and encode the
same frames. The first table is computed for CLIP ViT-L/14-336 with the text models of LLaVA-Next 8B and Qwen2.5-VL 7B;
"all patches" gives the 576 features of each frame. A multiplication and an addition are 2 FLOP; attention counts the
half below the diagonal, and the output layer one position.

The second table is measured: a random encoder of 32 pixels, a random Llama of two layers, and a synthetic video of 24
frames per second. Times are medians over the rounds, in which the functions run in turn, in reverse order in every
second one. "Encode" includes reading the file; "prefill" is the forward pass of the tokens and a short question. Memory
is the largest resident set during a run, less that before it. The last lines compare reading, encoding and both.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event, Thread

import torch
from torch import Tensor

from sweettok import VideoLanguageModel, VTok
from sweettok.data.synthetic import synthetic_clip
from sweettok.data.writer import write_video
from sweettok.vtok.cache import cache_features
from sweettok.vtok.config import VTokConfig
from sweettok.vtok.language_config import LanguageConfig, ScratchConfig
from sweettok.vtok.moments import pool
from sweettok.vtok.output import KEY, VisualTokens
from sweettok.vtok.sampling import option_scores

FPS, CLIP, DIFFERENT = 24, 48, 20  # frames per second, frames of a synthetic clip, number of different clips
VISION = {"image_size": 32, "patch_size": 4, "width": 96, "layers": 3, "head_width": 32}
SCRATCH = ScratchConfig(dim=64, num_layers=2, num_heads=2, vocab_size=280, max_length=100_000)
QUESTION, ANSWER = "what moves?", "a ball"


@dataclass(frozen=True)
class Encoder:
    """A vision transformer: its width, the blocks that are computed, patches in a row, and numbers of a patch."""

    width: int
    blocks: int
    grid: int
    numbers: int

    def flops(self) -> int:
        """Of one frame: patch embedding, and in each block four projections, an MLP of 4 times the width, attention."""
        patches, width = self.grid**2, self.width
        tokens = patches + 1
        block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
        return 2 * patches * self.numbers * width + self.blocks * block


@dataclass(frozen=True)
class Language:
    """A Llama or Qwen2: sizes of its text model."""

    width: int
    layers: int
    key_width: int  # of all heads of keys, and of values
    hidden: int
    vocab_size: int

    def weights(self) -> int:
        """Of the linear layers of all blocks."""
        attention = 2 * self.width**2 + 2 * self.width * self.key_width
        return self.layers * (attention + 3 * self.width * self.hidden)

    def flops(self, tokens: int, causal: bool = True) -> int:
        """Of the prefill, with logits of the last position only."""
        attention = 4 * tokens**2 * self.width * self.layers
        return 2 * tokens * self.weights() + attention // (2 if causal else 1) + 2 * self.width * self.vocab_size

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values in bfloat16."""
        return 2 * 2 * self.layers * self.key_width * tokens


CLIP_L = Encoder(width=1024, blocks=23, grid=24, numbers=3 * 14 * 14)  # the last of its 24 blocks is not computed
LANGUAGE = {
    "LLaVA-Next 8B": Language(width=4096, layers=32, key_width=1024, hidden=14336, vocab_size=128320),
    "Qwen2.5-VL 7B": Language(width=3584, layers=28, key_width=512, hidden=18944, vocab_size=152064),
}


def num_tokens(moments: int) -> dict[str, int]:
    return {"VTok": 16 + moments - 1, "naive": 16 * moments, "all patches": 576 * moments}


def frames_of(seconds: float) -> int:
    return int(seconds * FPS) + 1


def computed(lengths: list[float]) -> None:
    config = VTokConfig()
    print("| seconds | tokens | encoding, TFLOP | " + " | ".join(f"{name}: TFLOP, cache" for name in LANGUAGE) + " |")
    print("|---" * (3 + len(LANGUAGE)) + "|")
    for seconds in lengths:
        moments = config.num_moments(frames_of(seconds), FPS)
        for scheme, tokens in num_tokens(moments).items():
            costs = [
                f"{model.flops(tokens) / 1e12:,.4g}, {model.cache_bytes(tokens) / 2**20:,.0f} MiB"
                for model in LANGUAGE.values()
            ]
            encoding = f"{CLIP_L.flops() * moments / 1e12:,.4g}"
            print(f"| {seconds:g} | {scheme}: {tokens:,} | {encoding} | {' | '.join(costs)} |")


class Memory:
    """Context that records the resident memory of this process in MiB."""

    def __enter__(self) -> "Memory":
        self.seen, self.done = [resident()], Event()
        self.thread = Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.01):
            self.seen.append(resident())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def growth(self) -> float:
        return max(self.seen) - self.seen[0]

    def quarters(self) -> list[float]:
        """Peaks of each quarter of the time."""
        size = max(1, len(self.seen) // 4)
        return [max(self.seen[part * size : (part + 1) * size], default=0) for part in range(4)]


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def draw(path: Path, seconds: float, size: int) -> None:
    clips = [synthetic_clip(number, CLIP, size).video for number in range(DIFFERENT)]

    def blocks() -> Iterator[Tensor]:
        for number in range(-(-frames_of(seconds) // CLIP)):
            yield clips[number % DIFFERENT]

    write_video(path, blocks(), FPS)


def stream(tok: VTok, path: Path, frames: int) -> VisualTokens:
    return VisualTokens.join(list(tok.stream(path, max_frames=frames)))


@torch.no_grad()
def naive(tok: VTok, path: Path, frames: int) -> VisualTokens:
    """The pooled features of every sampled frame."""
    values, times = [], []
    with closing(tok.moments(path, max_frames=frames).groups()) as groups:
        for group in groups:
            found = pool(tok.encoder(group.frames[0]), tok.config.grid)
            values.append(found.flatten(0, 1)[None])
            times.append(group.times.repeat_interleave(found.shape[1])[None])
    values, times = torch.cat(values, 1), torch.cat(times, 1)
    return VisualTokens(values, times, torch.full(times.shape[1:], KEY), torch.zeros(1, dtype=torch.int64))


def alternate(works: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds, and largest growth of memory in MiB, of each function."""
    taken, grown = ({name: [] for name in works} for _ in range(2))
    for number in range(rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            with Memory() as memory:
                start = time.perf_counter()
                works[name]()
                taken[name].append(time.perf_counter() - start)
            grown[name].append(memory.growth())
    return {name: median(each) for name, each in taken.items()}, {name: max(each) for name, each in grown.items()}


def measured(tok: VTok, model: VideoLanguageModel, path: Path, lengths: list[float], rounds: int) -> None:
    print("\n| seconds | tokens | encode, s | MiB | prefill, s | MiB | naive / VTok: encode, prefill, both |")
    print("|---" * 7 + "|")
    for seconds in lengths:
        frames = frames_of(seconds)
        encoders = {"VTok": lambda f=frames: stream(tok, path, f), "naive": lambda f=frames: naive(tok, path, f)}
        tokens = {name: work() for name, work in encoders.items()}
        readers = {n: lambda t=t: option_scores(model, t, [QUESTION], [ANSWER]) for n, t in tokens.items()}
        times, memory = zip(*(alternate(works, rounds) for works in (encoders, readers)), strict=True)
        ratios = [each["naive"] / each["VTok"] for each in times]
        ratios.append(sum(each["naive"] for each in times) / sum(each["VTok"] for each in times))
        for name in encoders:
            costs = " | ".join(f"{t[name]:.3g} | {m[name]:.0f}" for t, m in zip(times, memory, strict=True))
            last = ", ".join(f"{ratio:.2f}" for ratio in ratios) if name == "naive" else ""
            print(f"| {seconds:g} | {name}: {tokens[name].values.shape[1]:,} | {costs} | {last} |", flush=True)


def overlap(tok: VTok, path: Path, folder: Path, seconds: float, rounds: int) -> None:
    """Reading, encoding and both, for one long file and for many short ones."""
    frames = frames_of(seconds)
    groups = [group.frames[0] for group in tok.moments(path, max_frames=frames).groups()]
    names = [f"clip{number}" for number in range(24)]
    files, count = [folder / f"{name}.mp4" for name in names], iter(range(10_000))
    for number, file in enumerate(files):
        write_video(file, [synthetic_clip(number, CLIP, 256).video], FPS)
    short = [group.frames[0] for file in files for group in tok.moments(file).groups()]
    works = {
        "one file, reading": lambda: [None for _ in tok.moments(path, max_frames=frames).groups()],
        "one file, encoding": lambda: [tok.encoder(group) for group in groups],
        "one file, stream": lambda: stream(tok, path, frames),
        "clips, reading": lambda: [None for file in files for _ in tok.moments(file).groups()],
        "clips, encoding": lambda: [tok.encoder(group) for group in short],
        "clips, cache_features": lambda: cache_features(tok, names, files, folder / f"cache{next(count)}"),
    }
    times, _ = alternate(works, rounds)
    print("\n" + "\n".join(f"{name:22} {taken:.3f} s" for name, taken in times.items()))
    for what, both in (("one file", "stream"), ("clips", "cache_features")):
        parts = [times[f"{what}, reading"], times[f"{what}, encoding"]]
        print(f"{what}: {both} / (reading + encoding) {times[f'{what}, {both}'] / sum(parts):.2f}", end=", ")
        print(f"/ the longer of both {times[f'{what}, {both}'] / max(parts):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 60, 600])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="height and width of the synthetic video")
    parser.add_argument("--computed-only", action="store_true")
    args = parser.parse_args()
    computed(args.seconds)
    if args.computed_only:
        return
    torch.manual_seed(0)
    tok = VTok(VTokConfig(pretrained=None, architecture={"embed_dim": 96, "vision_cfg": VISION})).eval()
    model = VideoLanguageModel.from_scratch(LanguageConfig(visual_dim=96, scratch=SCRATCH), [QUESTION, ANSWER]).eval()
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        draw(path, max(args.seconds), args.size)
        stream(tok, path, frames_of(5))  # warm-up
        with Memory() as memory:
            count = sum(part.times.shape[1] for part in tok.stream(path, batch_size=32))
        peaks = " / ".join(f"{peak:.1f}" for peak in memory.quarters())
        print(f"stream of {max(args.seconds):g} s, {count:,} tokens: peak memory by quarters of the time {peaks} MiB")
        measured(tok, model, path, args.seconds, args.rounds)
        overlap(tok, path, Path(folder), min(60, max(args.seconds)), args.rounds)


if __name__ == "__main__":
    main()
