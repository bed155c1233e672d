"""Reference curves: trains every stage of configs/tiny with several seeds, with the commands of the quickstart.

    python scripts/bench/curves.py [--seeds 0 1 2] [--work FOLDER] [--out FILE]
    python scripts/bench/curves.py --plot         only plot the JSON file

The spatial branch and stage 1 use the proxy of the same seed, stage 2 starts from stage 1 of the same seed, and the
generator is trained on tokens of stage 2 of the same seed. Clips and prior are the same for all seeds. The script can
be run again: finished runs are reused, interrupted ones continue. A seed takes about ten minutes on one core.

For each stage, the file has some terms of its log: `train`, means over intervals of equal length (null while a term is
not logged yet), and `held_out`, on the validation clips after each fifth of the steps. The plot shows the first term of
each.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from omegaconf import OmegaConf

from sweettok.cli.main import run_reporting_errors
from sweettok.config import read_settings
from sweettok.stages import load_config
from sweettok.store import write_aside

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "tiny"
DATA_SEED = 0
INTERVALS = 25  # points of a training curve
EVALUATIONS = 5  # points of a curve on held-out clips

# Terms of each stage's log in the file; the first ones are plotted.
WORDS = ("perplexity/adjective", "perplexity/noun", "perplexity/adverb", "perplexity/verb")
TRAIN = {
    "proxy": ("reconstruction_loss", "commitment_loss", "code_perplexity"),
    "spatial": ("code_loss", "code_accuracy", *WORDS[:2]),
    "stage1": ("code_loss", "code_accuracy", "auxiliary_loss", *WORDS),
    "stage2": ("reconstruction_loss", "feature_matching_loss", "discriminator_loss"),
    "generator": ("cross_entropy", "accuracy"),
}
HELD_OUT = {
    "proxy": ("psnr", "image_psnr"),
    "spatial": ("code_loss", "code_accuracy"),
    "stage1": ("psnr", "code_loss", "code_accuracy"),
    "stage2": ("psnr",),
    "generator": ("perplexity", "accuracy", *WORDS),
}


def run(command: Sequence[object], **environment: object) -> None:
    """Run a command from the root of the repository, on the CPU, with one thread."""
    unset = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "ACCELERATE_CONFIG", "SPATIAL"), "")
    fixed = {**unset, "NUM_PROCESSES": 1, "OMP_NUM_THREADS": 1, "VIRTUAL_ENV": sys.prefix}
    values = {name: str(value) for name, value in (fixed | environment).items()}
    words = [str(word) for word in command]
    if status := subprocess.run(words, cwd=ROOT, env=os.environ | values).returncode:
        raise OSError(f"exit status {status} of {' '.join(words[:4])} ..., see above; run this again to continue")


def sweettok(*arguments: object) -> None:
    """Run the `sweettok` command."""
    run([sys.executable, "-m", "sweettok", *arguments])


def train(stage: str, seed: int, folder: Path, **settings: object) -> None:
    """Train a stage into `folder` with its shell script. Only settings of seed, inputs and logging are changed."""
    config = CONFIGS / f"{stage}.yaml"
    settings |= {"train.output_dir": folder / stage, "train.seed": seed, "train.log_every": 1, "train.sample_every": 0}
    settings["train.eval_every"] = load_config(config).train.max_steps // EVALUATIONS
    words = [f"{key}={value}" for key, value in settings.items()]
    run(["bash", f"run_train_{stage}.sh", *words], CONFIG=config, STAGE1=folder / "stage1" / "final")


def train_all(seed: int, work: Path) -> None:
    """Train every stage with a seed, in `work`/seed-<seed>."""
    folder, clips = work / f"seed-{seed}", work / "clips"
    data = {"data.train": clips / "train.txt", "data.validation": clips / "val.txt"}
    inputs = {"proxy": folder / "proxy" / "final", "prior": work / "prior"}
    train("proxy", seed, folder, **data)
    train("spatial", seed, folder, **data, **inputs)
    train("stage1", seed, folder, **data, **inputs)
    train("stage2", seed, folder, **data)
    tokenizer, tokens = folder / "stage2" / "final", folder / "tokens"
    for part in ("train", "val"):
        source = "--data", clips / f"{part}.txt", "--classes", clips / "classes.txt"
        sweettok("tokenize", "--checkpoint", tokenizer, *source, "--out", tokens / part)
    data = {"data.train": tokens / "train", "data.validation": tokens / "val"}
    train("generator", seed, folder, tokenizer=tokenizer, **data)


def make_clips(work: Path) -> None:
    """Make the clips and the prior of the quickstart."""
    clips, prior = work / "clips", work / "prior"
    sizes = "--num-train", 640, "--num-val", 32, "--frames", 24, "--size", 64
    sweettok("data", "synthetic", clips, *sizes, "--seed", DATA_SEED)
    captions = clips / "captions.jsonl"
    sweettok("priors", "build", "--captions", captions, "--out", prior, "--dim", 16, "--neighbors", 2)


def read_curves(log: Path, stage: str, steps: int) -> dict[str, dict[str, list[float | None]]]:
    """{"train": {term: mean of each interval}, "held_out": {term: values}} of one run, to five digits."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    length = steps // INTERVALS

    def mean(key: str, number: int) -> float | None:
        found = [line[key] for line in lines if key in line and (line["step"] - 1) // length == number]
        return float(f"{sum(found) / len(found):.5g}") if found else None

    return {
        "train": {term: [mean(f"train/{term}", number) for number in range(INTERVALS)] for term in TRAIN[stage]},
        "held_out": {
            term: [float(f"{line[key]:.5g}") for line in lines if (key := f"eval/{term}") in line]
            for term in HELD_OUT[stage]
        },
    }


def collect(seeds: Sequence[int], work: Path) -> dict:
    """Content of the file: versions and settings, and {stage: {"steps", kind: {term: {seed: values}}}}."""
    stages = {}
    for stage in TRAIN:
        steps = load_config(CONFIGS / f"{stage}.yaml").train.max_steps
        runs = {seed: read_curves(work / f"seed-{seed}" / stage / "log.jsonl", stage, steps) for seed in seeds}
        stages[stage] = {"steps": steps} | {
            kind: {term: {str(seed): runs[seed][kind][term] for seed in seeds} for term in terms[stage]}
            for kind, terms in (("train", TRAIN), ("held_out", HELD_OUT))
        }
    made = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "seeds": list(seeds)}
    made |= {"data_seed": DATA_SEED, "settings": {stage: settings_hash(stage) for stage in TRAIN}}
    return {"made": made, "stages": stages}


def settings_hash(stage: str) -> str:
    """The first 12 digits of the SHA-256 of a stage's settings, without comments."""
    settings = OmegaConf.to_container(read_settings(CONFIGS / f"{stage}.yaml"))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write(path: Path, found: dict) -> None:
    """Write JSON with each list on one line."""
    text = re.sub(r"\[[^\[\]]*\]", lambda match: " ".join(match[0].split()), json.dumps(found, indent=1))
    with write_aside(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def plot_curves(path: Path, found: dict) -> None:
    """Plot a column per stage: its first training term above, its first held-out term below, a line per seed."""
    stages = found["stages"]
    figure, axes = plt.subplots(2, len(stages), figsize=(3.6 * len(stages), 6), layout="constrained", squeeze=False)
    for column, (stage, about) in enumerate(stages.items()):
        for row, kind in enumerate(("train", "held_out")):
            term, curves = next(iter(about[kind].items()))
            panel = axes[row, column]
            for seed, values in curves.items():
                steps = [about["steps"] * (i + 1) / len(values) for i in range(len(values))]
                panel.plot(steps, [math.nan if v is None else v for v in values], label=f"seed {seed}")
            panel.set_title(f"{stage}: {term}{' (held out)' if row else ''}".replace("_", " "), fontsize=11)
            panel.set_xlabel("step")
            panel.grid(alpha=0.3)
    axes[0, 0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description="Reference curves of every stage, at tiny size.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "curves", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "bench" / "results" / "curves.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "curves.png")
    parser.add_argument("--plot", action="store_true", help="only plot the file --out, without training")
    args = parser.parse_args()
    if not args.plot:
        work = args.work.resolve()
        make_clips(work)
        for seed in args.seeds:
            train_all(seed, work)
        write(args.out, collect(args.seeds, work))
    found = json.loads(args.out.read_text(encoding="utf-8"))
    plot_curves(args.picture, found)
    print("held-out clips, at the end:")
    for stage, about in found["stages"].items():
        if found["made"]["settings"][stage] != settings_hash(stage):
            print(f"note: configs/tiny/{stage}.yaml has changed since these curves were made")
        for term, curves in about["held_out"].items():
            last = [values[-1] for values in curves.values()]
            print(f"{stage:10} {term:22} {min(last):8.4g} to {max(last):8.4g}")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
