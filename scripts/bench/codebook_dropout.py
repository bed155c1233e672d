"""Effect of the release's codebook dropout: trains stage 1 of the tiny configuration with and without it.

    python scripts/bench/codebook_dropout.py [--steps 400] [--dropouts 0.0 0.5] [--out FILE]

Needs the outputs of the quickstart in outputs/tiny (clips, prior, proxy). Dropout changes the codes at every step of
training, so the words of the trained tokenizer are also counted on the held-out clips, without dropout. Results are in
scripts/bench/results/codebook_dropout.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from sweettok.eval.tokenizers import UsageCounter, round_trip
from sweettok.stages import load_config
from sweettok.stages.inputs import Inputs
from sweettok.tokenizer.model import SweetTok

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "tiny" / "stage1.yaml"
POINTS = 10  # of each curve
KINDS = ("usage", "perplexity")


def train(dropout: float, steps: int, folder: Path) -> list[dict]:
    """Train stage 1 into `folder`; returns the lines of its log."""
    settings = {
        "tokenizer.graph_dropout": dropout,
        "train.output_dir": folder,
        "train.max_steps": steps,
        "train.log_every": steps // POINTS,
        "train.eval_every": steps,
        "train.save_every": steps,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    subprocess.run([sys.executable, "-m", "sweettok", "train", CONFIG, *overrides], check=True)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def curve(lines: list[dict]) -> list[dict]:
    """Code loss, and usage and perplexity of the word lists, at each point of the log."""
    points = []
    for line in lines:
        if "train/code_loss" in line:
            point = {"step": line["step"], "code_loss": round(line["train/code_loss"], 4)}
            for kind in KINDS:
                names = [name for name in line if name.startswith(f"train/{kind}/")]
                point[kind] = {name.rpartition("/")[2]: round(line[name], 4) for name in names}
            points.append(point)
    return points


@torch.no_grad()
def held_out(folder: Path, lines: list[dict]) -> dict:
    """Losses and used words of the averaged weights on the validation clips."""
    tokenizer, counter = SweetTok.from_pretrained(folder / "final"), None
    run = load_config(CONFIG)
    clips = Inputs().clips(run.data.validation, run.data, tokenizer.config.proxy)
    for index in range(len(clips)):
        trip = round_trip(tokenizer, clips[index]["video"][None])
        counter = counter or UsageCounter(trip.sizes)
        counter.update(trip.lists)
    words = {
        name: {"used": about["used"], "words": about["words"], "perplexity": round(about["perplexity"], 2)}
        for name, about in counter.summary().items()
    }
    last = next(line for line in reversed(lines) if "eval/code_loss" in line)
    return {"code_loss": round(last["eval/code_loss"], 4), "psnr": round(last["eval/psnr"], 3), "words": words}


def main() -> None:
    parser = argparse.ArgumentParser(description="Stage 1 without and with codebook dropout, at tiny size.")
    parser.add_argument("--steps", type=int, default=400, help=f"a multiple of {POINTS} (default: 400)")
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "bench" / "results" / "codebook_dropout.json")
    args = parser.parse_args()
    results = {}
    for dropout in args.dropouts:
        with tempfile.TemporaryDirectory() as folder:
            lines = train(dropout, args.steps, Path(folder) / "run")
            results[str(dropout)] = {"held_out": held_out(Path(folder) / "run", lines), "curve": curve(lines)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{args.out}\nheld-out clips:")
    for dropout, about in results.items():
        found = about["held_out"]
        used = ", ".join(f"{name} {words['used']}/{words['words']}" for name, words in found["words"].items())
        print(f"  dropout {dropout}: code loss {found['code_loss']}, PSNR {found['psnr']} dB; words used: {used}")


if __name__ == "__main__":
    main()
