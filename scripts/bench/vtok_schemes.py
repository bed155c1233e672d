"""The paper's comparison of token schemes in miniature: the same image encoder, steps, sizes and questions for all.

    python scripts/bench/vtok_schemes.py --tokenizer FOLDER --train LIST --validation LIST [--steps 1200]
        [--seeds 0 1 2] [--schemes NAME ...] [--sweettok FOLDER] [--set KEY=VALUE ...] [--report]

A scheme is a VTok with the encoder of --tokenizer, or a SweetTok. For each scheme and seed a language model is trained
by `sweettok train configs/tiny/vtok.yaml` on questions alone, without a video decoder, and asked all held-out questions
by `sweettok eval qa`. The script can be run again: finished cells are reused, interrupted ones continue. Features are
computed once for each scheme. Writes schemes.json and schemes.md into --out: the accuracy of each skill, and for each
claim the difference of two schemes with its 95% interval, of a bootstrap over clips and seeds, which are paired.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import numpy as np

from sweettok.cli.main import run_reporting_errors
from sweettok.data.lists import load_clips
from sweettok.store import sha256, write_aside
from sweettok.vtok.model import VTok

ROOT = Path(__file__).resolve().parents[2]
REPEATS, MARGIN = 2000, 0.02
BLIND = "blind"


def vtok(edge: int, projection: str = "mlp") -> dict:
    return {"grid": (edge, edge), "projection": projection}


def naive(every: int, edge: int) -> dict:
    """Every so many frames of 25, with edge x edge tokens each."""
    return {"grid": (edge, edge), "projection": "identity", "key_frame": "all", "frames_per_token": every}


# Settings of the tokenizer of each scheme.
SCHEMES = {
    "VTok 16+6": vtok(4),
    "VTok 16+6, g per patch": vtok(4, "patch_mlp"),
    "VTok 1+6": vtok(1),
    "VTok 4+6": vtok(2),
    "VTok 64+6": vtok(8),
    "naive 1x16": naive(25, 4),
    "naive 2x16": naive(24, 4),
    "naive 5x4": naive(6, 2),
    "naive 7x1": naive(4, 1),
    "naive 7x16": naive(4, 4),
    BLIND: vtok(1, "identity"),
}
SWEETTOK = "SweetTok"
# What is claimed: first scheme better than the second, or at most MARGIN worse.
BETTER, NOT_WORSE = "is better than", "is at most 2 points below"
CLAIMS = [
    *(
        (first, BETTER, second)
        for first in ("VTok 16+6", "VTok 16+6, g per patch")
        for second in ("naive 1x16", "naive 2x16", "naive 5x4")
    ),
    ("VTok 1+6", BETTER, "naive 7x1"),
    ("VTok 16+6", NOT_WORSE, "naive 7x16"),
    ("VTok 4+6", BETTER, "VTok 1+6"),
    ("VTok 16+6", BETTER, "VTok 4+6"),
    ("VTok 16+6", NOT_WORSE, "VTok 64+6"),
    ("VTok 16+6, g per patch", BETTER, "VTok 16+6"),
    ("VTok 16+6", BETTER, SWEETTOK),
    ("VTok 16+6", BETTER, BLIND),
]


def make_tokenizer(args: argparse.Namespace, scheme: str) -> Path:
    """The folder of the scheme's tokenizer."""
    if scheme == SWEETTOK:
        return args.sweettok
    folder = args.out / "tokenizers" / scheme.replace(" ", "-").replace(",", "")
    if not (folder / "config.json").is_file():
        source = VTok.from_pretrained(args.tokenizer)
        made = VTok(replace(source.config, **SCHEMES[scheme]), load=False, sizes=source.sizes)
        made.encoder.load_state_dict(source.encoder.state_dict())
        made.save_pretrained(folder)
    return folder


def overrides(args: argparse.Namespace, scheme: str, tokenizer: Path) -> list[str]:
    """Settings of the runs of a scheme."""
    trained = scheme in SCHEMES and SCHEMES[scheme]["projection"] != "identity"
    every = max(args.steps // 4, 1)
    return [
        f"tokenizer={tokenizer}",
        f"data.train={args.train}",
        f"data.validation={args.validation}",
        f"data.features={args.out / 'features'}",
        "ratio=[1,0]",
        "decoder.kind=none",
        "decoder.path=null",
        "language.motion_mlp=false",
        f"train_projection={str(trained).lower()}",
        f"blind={str(scheme == BLIND).lower()}",
        f"train.max_steps={args.steps}",
        f"train.save_every={every}",
        f"train.log_every={every}",
        "train.eval_every=0",
        "train.keep_checkpoints=1",
        *args.set,
    ]


def fill(args: argparse.Namespace, scheme: str, seed: int) -> dict | None:
    """Train and ask one cell, unless it is finished; with --report only read it."""
    tokenizer = make_tokenizer(args, scheme)
    words = overrides(args, scheme, tokenizer)
    lists = [load_clips(path).hash for path in (args.train, args.validation)]
    weights = sha256(tokenizer / "config.json", tokenizer / "model.safetensors")
    known = json.dumps([words, lists, weights, args.config.read_text()], sort_keys=True)
    name = f"{scheme.replace(' ', '-').replace(',', '')}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"
    folder = args.out / name / f"seed-{seed}"
    report = folder / "report.json"
    if not report.is_file() and not args.report:
        own = [f"train.seed={seed}", f"train.output_dir={folder / 'run'}"]
        run(["train", str(args.config), *words, *own])
        blind = ["--blind"] if scheme == BLIND else []
        asked = ["--checkpoint", str(folder / "run" / "final"), "--data", str(args.validation), "--out", str(report)]
        run(["eval", "qa", *asked, *blind])
    if not report.is_file():
        return None
    found = json.loads(report.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    seconds = [line["step_seconds"] for line in lines if "step_seconds" in line]
    about = VTok.from_pretrained(tokenizer) if scheme in SCHEMES else None
    tokens = 0 if scheme == BLIND else about.num_tokens(frames=25) if about else None
    return {"results": found["results"], "tokens": tokens, "step_seconds": median(seconds)}


def run(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "sweettok", *words], cwd=ROOT)
    if done.returncode:
        raise OSError(f"sweettok {' '.join(words[:2])} ended with status {done.returncode}")


def right(cells: dict[int, dict], seeds: list[int]) -> tuple[list[str], np.ndarray]:
    """Clips, and the number of right answers about each of them (seeds, clips)."""
    rows = []
    for seed in seeds:
        counts: dict[str, int] = defaultdict(int)
        for clip in cells[seed]["results"]["clips"]:
            counts[clip["key"].split(" ")[0]] += clip["right"]
        rows.append(counts)
    clips = sorted(rows[0])
    return clips, np.array([[row[clip] for clip in clips] for row in rows], float)


def paired(first: dict[int, dict], second: dict[int, dict]) -> tuple[float, float, float]:
    """Difference of the accuracies, and its 95% interval over clips and seeds."""
    seeds = sorted(first.keys() & second.keys())
    (clips, one), (others, two) = right(first, seeds), right(second, seeds)
    assert clips == others
    asked: dict[str, int] = defaultdict(int)
    for clip in first[seeds[0]]["results"]["clips"]:
        asked[clip["key"].split(" ")[0]] += 1
    weight, difference = np.array([asked[clip] for clip in clips], float), one - two
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(REPEATS):
        rows, columns = rng.integers(len(seeds), size=len(seeds)), rng.integers(len(clips), size=len(clips))
        draws.append(difference[rows][:, columns].mean(0).sum() / weight[columns].sum())
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(difference.mean(0).sum() / weight.sum()), float(low), float(high)


def verdict(kind: str, low: float, high: float) -> str:
    bound = 0 if kind == BETTER else -MARGIN
    return "holds" if low > bound else "fails" if high < bound else "undecided"


def table(results: dict[str, dict[int, dict]]) -> str:
    skills = list(next(iter(next(iter(results.values())).values()))["results"]["skills"])
    lines = [
        f"| scheme | tokens | seeds | all | {' | '.join(skills)} | s a step |",
        "|---|" + "---:|" * (len(skills) + 4),
    ]
    for scheme, cells in results.items():
        mean = [fmean(c["results"]["accuracy"]["mean"] for c in cells.values())]
        mean += [fmean(c["results"]["skills"][skill]["mean"] for c in cells.values()) for skill in skills]
        tokens = next(iter(cells.values()))["tokens"]
        seconds = median(c["step_seconds"] for c in cells.values())
        shown = " | ".join(f"{value:.1%}" for value in mean)
        lines.append(f"| {scheme} | {'-' if tokens is None else tokens} | {len(cells)} | {shown} | {seconds:.2f} |")
    lines += ["", "| claim | difference | 95% interval | verdict |", "|---|---:|---|---|"]
    for first, kind, second in CLAIMS:
        if results.get(first, {}).keys() & results.get(second, {}).keys():
            found, low, high = paired(results[first], results[second])
            interval = f"{low:+.1%} to {high:+.1%}"
            lines.append(f"| {first} {kind} {second} | {found:+.1%} | {interval} | {verdict(kind, low, high)} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's comparison of token schemes in miniature.")
    add = parser.add_argument
    add("--config", type=Path, default=ROOT / "configs" / "tiny" / "vtok.yaml", help="configuration file")
    add("--tokenizer", type=Path, required=True, help="folder of a VTok, whose encoder all schemes use")
    add("--sweettok", type=Path, help="folder of a SweetTok, for a row of its tokens")
    add("--train", type=Path, required=True, help="list of training clips, of `sweettok data scenes`")
    add("--validation", type=Path, required=True, help="list of held-out clips")
    add("--steps", type=int, default=1200, help="of each language model (default: 1200)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--schemes", nargs="+", metavar="NAME", help=f"of {'; '.join(SCHEMES)} (default: all)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all runs")
    add("--out", type=Path, default=ROOT / "outputs" / "vtok_schemes", help="folder of runs and results")
    add("--report", action="store_true", help="train nothing, write what is finished")
    args = parser.parse_args()
    for name in ("config", "tokenizer", "train", "validation", "out", "sweettok"):
        value = getattr(args, name)
        setattr(args, name, value and value.resolve())
    return args


def main() -> None:
    args = parse()
    schemes = args.schemes or [*SCHEMES, *([SWEETTOK] if args.sweettok else [])]
    if unknown := [name for name in schemes if name not in SCHEMES and not (name == SWEETTOK and args.sweettok)]:
        raise ValueError(f"no scheme {unknown[0]!r}; there are {'; '.join(SCHEMES)}")
    results: dict[str, dict[int, dict]] = {}
    for seed in args.seeds:  # seed after seed, so that an early end leaves whole comparisons
        for scheme in schemes:
            found = fill(args, scheme, seed)
            if found is not None:
                results.setdefault(scheme, {})[seed] = found
    if not results:
        raise ValueError(f"nothing is finished in {args.out}: run this without --report")
    with write_aside(args.out / "schemes.json") as aside:
        aside.write_text(json.dumps({"kind": "vtok schemes", "steps": args.steps, "results": results}) + "\n")
    with write_aside(args.out / "schemes.md") as aside:
        aside.write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
