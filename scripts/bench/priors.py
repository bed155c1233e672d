"""Cost of building a prior: captions per second and peak memory, on synthetic captions.

    python scripts/bench/priors.py [--captions 1000000] [--processes 2] [--dim 256]

The captions are already tagged JSON lines of 7 or 8 words, drawn by Zipf's law from lists of 15,000 to 60,000 words, of
which as many are kept as in the published priors. Measured are packing; counting and edges, with given vectors; and the
same with vectors made from the captions. There is no tagger. Memory is the peak so far of the main process, and that of
the largest worker.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweettok.priors.build import Rules, build
from sweettok.priors.captions import PARTS_OF_SPEECH
from sweettok.priors.chunks import pack_files
from sweettok.priors.summary import describe

# Length of each word list, and words of it per caption.
LISTS = {"adjective": (30_000, 2), "noun": (60_000, 3), "adverb": (15_000, 1), "verb": (30_000, 2)}
KEPT = {"adjective": 5078, "noun": 5403, "adverb": 1872, "verb": 9267}
BLOCK = 20_000  # captions drawn at once


class GivenVectors:
    name = "random numbers"

    def vectors(self, words: Sequence[str]) -> dict[str, np.ndarray]:
        return dict(zip(words, np.random.default_rng(0).standard_normal((len(words), 256), np.float32), strict=True))


def write_captions(path: Path, count: int) -> None:
    """Words are numbered by rank, with counts proportional to 1 / rank; half of the captions omit the last verb."""
    rng = np.random.default_rng(0)
    chances = {part: 1 / np.arange(1, words + 1) for part, (words, _) in LISTS.items()}
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, count, BLOCK):
            drawn = {
                part: rng.choice(words, (BLOCK, number), p=chances[part] / chances[part].sum())
                for part, (words, number) in LISTS.items()
            }
            few = rng.integers(0, 2, BLOCK)
            for row in range(min(BLOCK, count - start)):
                words = [[f"{part[:3]}{i}", part] for part in PARTS_OF_SPEECH for i in drawn[part][row].tolist()]
                record = {"key": str(start + row), "text": "", "words": words[: len(words) - few[row]]}
                file.write(json.dumps(record) + "\n")


def peak(who: int = resource.RUSAGE_SELF) -> str:
    return f"{resource.getrusage(who).ru_maxrss / 2**20:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--dim", type=int, default=256)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, work = Path(folder) / "captions.jsonl", Path(folder) / "work"
        write_captions(path, args.captions)
        print(f"{args.captions:,} captions, {path.stat().st_size / 2**20:,.0f} MiB, {args.processes} processes")

        def step(name: str, run: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            result = run()
            seconds = time.perf_counter() - start
            print(f"{name:24} {seconds:7.1f} s {args.captions / seconds:9,.0f} captions/s, peak {peak()}", flush=True)
            return result

        chunks = step("packing", lambda: pack_files([path], work, processes=args.processes))
        disk = sum(file.stat().st_size for file in work.iterdir()) / 2**20
        print(f"{'':24} {disk:,.0f} MiB on disk, peak of a worker {peak(resource.RUSAGE_CHILDREN)}")
        rules = Rules({}, KEPT)
        step("counting, edges", lambda: build(chunks, rules, GivenVectors()))
        built = step(f"the same, {args.dim} vectors", lambda: build(chunks, rules, args.dim))
    print(describe(built.prior, 3))


if __name__ == "__main__":
    main()
