"""Print the results of the quickstart's stages and of baselines; exit with 1 if a result is too low.

python scripts/quickstart_table.py tokenizer outputs/tiny     PSNR of every stage on held-out clips
python scripts/quickstart_table.py generator outputs/tiny     perplexity of held-out words
python scripts/quickstart_table.py generated outputs/tiny     motion classes of generated clips
"""

import json
import sys
from pathlib import Path

MARGIN = 2.0  # least gain of the tokenizer over a copy of the first frame, dB; the mean frame is for comparison
RIGHT = 0.8  # least share of reconstructions with the motion class of their original
GENERATED = 0.6  # least share of generated clips with the motion class that was asked for
FACTOR = 4.0  # least ratio of the perplexity of guessing to that of the generator


def tokenizer(folder: str) -> int:
    scores = {
        stage: json.loads((Path(folder) / f"{stage}.json").read_text())["results"]["scores"]
        for stage in ("proxy", "stage1", "stage2")
    }
    psnr = {
        "copy of the first frame": scores["stage2"]["first frame"]["psnr"]["mean"],
        "mean frame of each clip": scores["stage2"]["mean frame"]["psnr"]["mean"],
        "stage 1, argmax codes": scores["stage1"]["reconstruction"]["psnr"]["mean"],
        "stage 2": scores["stage2"]["reconstruction"]["psnr"]["mean"],
        "proxy (upper bound of stage 1)": scores["proxy"]["reconstruction"]["psnr"]["mean"],
    }
    print("\nPSNR on held-out clips, dB")
    for name, value in psnr.items():
        print(f"  {name:32} {value:6.2f}")
    below = ("copy of the first frame", "mean frame of each clip", "stage 1, argmax codes")
    gain, over_mean, gain2 = (psnr["stage 2"] - psnr[name] for name in below)
    print(
        f"stage 2 minus first frame {gain:+.2f} dB, minus mean frame {over_mean:+.2f} dB, minus stage 1 {gain2:+.2f} dB"
    )
    if gain < MARGIN or gain2 <= 0:
        print(f"error: expected at least +{MARGIN} dB and more than 0 dB", file=sys.stderr)
        return 1
    return motion(Path(folder) / "motion.json", RIGHT)


def generated(folder: str) -> int:
    return motion(Path(folder) / "generated" / "motion.json", GENERATED)


def motion(report: Path, least: float) -> int:
    right = json.loads(report.read_text())["results"]["scores"]["motion"]["mean"]
    if right < least:
        print(f"error: {right:.1%} of the clips have the right motion class, expected {least:.0%}", file=sys.stderr)
        return 1
    return 0


def generator(folder: str) -> int:
    lines = (Path(folder) / "generator" / "log.jsonl").read_text().splitlines()
    found = [line for line in map(json.loads, lines) if "eval/perplexity" in line][-1]
    perplexity, uniform = found["eval/perplexity"], found["eval/perplexity_uniform"]
    print(f"\nperplexity of held-out words: {perplexity:.2f}, of guessing within the lists {uniform:.2f}")
    for name, value in found.items():
        if name.startswith("eval/perplexity/"):
            right = found[name.replace("perplexity", "accuracy")]
            print(f"  {name.removeprefix('eval/perplexity/'):12} {value:6.2f}, accuracy {right:.1%}")
    if perplexity * FACTOR > uniform:
        print(f"error: expected a perplexity {FACTOR:.0f} times below that of guessing", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit({"tokenizer": tokenizer, "generator": generator, "generated": generated}[sys.argv[1]](sys.argv[2]))
