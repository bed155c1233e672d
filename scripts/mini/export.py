"""Write trained models in half precision, with their cards, as the folders of a model that ships with the package.

    python scripts/mini/export.py --out DIR [--proxy DIR] [--tokenizer DIR] [--generator DIR] [--results DIR]

Writes DIR/proxy, DIR/tokenizer and DIR/generator, those that are given; the others are kept as they are. --results is
the folder of scripts/bench/mini.py, measured with the exported tokenizer. The generator must have been trained on ids
of the exported tokenizer, whose rounded weights may give other ids than the trained ones.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from sweettok import Generator, ProxyTokenizer, SweetTok
from sweettok.cli.main import run_reporting_errors
from sweettok.hub import WEIGHTS, read_config
from sweettok.store import check_output_folder, sha256, write_aside

MOST = 25e6  # bytes of all folders together
MODELS = {"proxy": ProxyTokenizer, "tokenizer": SweetTok, "generator": Generator}
DATA = """## Data

Trained on clips of the training part of J-HMDB (Jhuang et al., ICCV 2013), 21 actions, a subset of HMDB51 (Kuehne et
al., ICCV 2011), which its authors license under [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). The clips
were scaled and cropped. The weights are under the same licence: name both papers when you share them. Part of the
training sources was held out to choose settings, and the measured numbers are of the validation part, of other sources.
The word lists and graphs are built from words of captions, with GloVe vectors (Pennington et al., EMNLP 2014; PDDL).

## Intended use

To try the library, to test it, and to learn how it works, on short clips of people in action. The model is small and
its frames are small: do not judge the method by it. It has seen few scenes and few people, so do not use it where its
mistakes matter, or to draw conclusions about persons.
"""


def export(model: Any, source: Path, folder: Path, results: Path | None) -> None:
    """Save in half precision, with a card that says more than that of any model."""
    (folder / "README.md").unlink(missing_ok=True)  # one that was edited, as below, would be kept
    training = read_config(source, type(model).__name__)["training"]
    if (log := source.parent / "log.jsonl").is_file():
        training = {**(training or {}), **log_facts(log)}
    model.save_pretrained(folder, training=training, license="cc-by-4.0", name="mini", dtype=torch.float16)
    page = (folder / "README.md").read_text(encoding="utf-8")
    measured = f"\n## Measured\n\n{measured_table(results, folder)}" if results else ""
    with write_aside(folder / "README.md") as aside:
        aside.write_text(f"{page}\n{DATA}{measured}", encoding="utf-8")


def log_facts(path: Path) -> dict[str, str]:
    """Hours of all steps, and the last evaluation on the validation clips of training."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    timed = [row for row in rows if "step_seconds" in row]  # each the mean of the steps since the row before
    steps = pairwise([0, *(row["step"] for row in timed)])
    seconds = sum(row["step_seconds"] * max(end - start, 0) for row, (start, end) in zip(timed, steps, strict=True))
    facts = {"hours of computing": f"{seconds / 3600:.2f}"}
    names = ("eval/psnr", "eval/perplexity")
    last = next((row for row in reversed(rows) if set(names) & row.keys()), {})
    return facts | {f"{name} on held-out training sources": f"{last[name]:.2f}" for name in names if name in last}


def measured_table(results: Path, folder: Path) -> str:
    """The table of scripts/bench/mini.py; ValueError if it is of other weights than those in `folder`."""
    weights = json.loads((results / "mini.json").read_text(encoding="utf-8"))["weights"]
    found = weights.get(folder.name, {}).get(WEIGHTS)
    # The proxy is not measured; its card shows what the tokenizer reaches.
    if folder.name in weights and found != sha256(folder / WEIGHTS):
        raise ValueError(f"{results} is of other weights ({str(found)[:12]}) than {folder}: measure these")
    return (results / "mini.md").read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in MODELS:
        parser.add_argument(f"--{name}", metavar="DIR", help="as training wrote it")
    parser.add_argument("--results", type=Path, metavar="DIR", help="for the cards: mini.json and mini.md")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in MODELS if getattr(args, name)}
    if not given:
        raise ValueError("give at least one of --proxy, --tokenizer and --generator")
    check_output_folder(args.out, inputs=list(given.values()))
    for name, source in given.items():
        model = MODELS[name].from_pretrained(source)
        if name == "generator":
            hashes = SweetTok.from_pretrained(args.out / "tokenizer").ids_hash(), model.config.tokenizer_hash
            if hashes[0] != hashes[1]:
                raise ValueError(
                    f"{source} was trained on ids of another tokenizer ({str(hashes[1])[:12]}) than "
                    f"{args.out / 'tokenizer'} ({hashes[0][:12]}): export the tokenizer first, and tokenize with it"
                )
        export(model, Path(source), args.out / name, args.results)
    sizes = {name: (args.out / name / WEIGHTS).stat().st_size for name in MODELS if (args.out / name).is_dir()}
    print(", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))
    if sum(sizes.values()) > MOST:
        raise ValueError(f"{sum(sizes.values()) / 1e6:.1f} MB together are too large to ship; at most {MOST / 1e6:g}")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
