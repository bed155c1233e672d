"""Time to read a clip of a long film and of a short video, now and at another revision.

    python scripts/bench/reading.py --against REV [--minutes 60] [--reads 11] [FILE ...]

The film is synthetic: 64x64 pixels, H.264, a keyframe every 250 frames. Each revision reads clips in a process of its
own with one thread; the two take turns, on the same random places, and must return the same pixels. The table of
packets is written by the first read of a film, which is shown apart. FILE: short videos instead of a synthetic one.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 17
READER = """
import hashlib, sys, time
from sweettok.data.reader import read_clip
for line in sys.stdin:
    path, place = line.rstrip().rsplit(" ", 1)
    start = time.perf_counter()
    clip = read_clip(path, 17, 64, start=int(place))
    print(time.perf_counter() - start, hashlib.sha256(clip.numpy().tobytes()).hexdigest(), flush=True)
"""


def write_film(path: Path, frames: int) -> None:
    import av
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "250"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            image = np.broadcast_to(np.roll(ramp, number)[None, :, None], (64, 64, 3)).copy()
            image[number // 7 % 56 :][:8] = noise[number % 16, :8]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


class Reader:
    """A process that reads clips with the code of one revision."""

    def __init__(self, tree: Path, cache: Path):
        environment = {**os.environ, "PYTHONPATH": str(tree), "SWEETTOK_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", READER]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree
        )

    def __call__(self, path: Path, place: int) -> tuple[float, str]:
        """Seconds and a hash of the pixels."""
        self.process.stdin.write(f"{path} {place}\n")
        self.process.stdin.flush()
        seconds, digest = self.process.stdout.readline().split()
        return float(seconds), digest

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(title: str, path: Path, count: int, reads: int, now: Reader, before: Reader) -> None:
    """Print medians of reads at random places, and the median ratio of neighbouring reads."""
    rng, pairs = random.Random(0), []
    for turn in range(reads + 1):
        place = rng.randrange(max(1, count - FRAMES))
        order = (now, before) if turn % 2 else (before, now)
        found = {reader: reader(path, place) for reader in order}
        if found[now][1] != found[before][1]:
            raise SystemExit(f"{path}: other pixels at frame {place}")
        pairs.append((found[now][0], found[before][0]))
    first, rest = pairs[0], pairs[1:]
    medians = [statistics.median(column) for column in zip(*rest, strict=True)]
    ratio = statistics.median(other / own for own, other in rest)
    numbers = f"now {1000 * medians[0]:7.1f} ms, before {1000 * medians[1]:7.1f} ms, ratio {ratio:5.2f}"
    print(f"{title:32} {numbers}; first read {1000 * first[0]:.0f} and {1000 * first[1]:.0f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--against", required=True, metavar="REV")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--reads", type=int, default=11)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, git = Path(name), ["git", "-C", str(ROOT)]
        archive = subprocess.run(
            [*git, "archive", args.against, "sweettok", "configs"], check=True, capture_output=True
        )
        (folder / "before").mkdir()
        subprocess.run(["tar", "-x", "-C", str(folder / "before")], input=archive.stdout, check=True)
        films = {"film": (folder / "film.mp4", round(1500 * args.minutes))}
        films |= {} if args.files else {"short": (folder / "short.mp4", 250)}
        for path, frames in films.values():
            write_film(path, frames)
        time.sleep(12)  # tables of files that changed some seconds ago are not kept
        now, before = Reader(ROOT, folder / "cache"), Reader(folder / "before", folder / "other cache")
        for title, (path, frames) in films.items():
            compare(f"{title}, {frames} frames", path, frames, args.reads, now, before)
        for path in args.files:
            compare(path.name, path, 100, args.reads, now, before)
        now.close()
        before.close()


if __name__ == "__main__":
    main()
