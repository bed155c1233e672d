"""Split the training list of J-HMDB.

    python scripts/mini/prepare.py --train LIST --classes FILE --out FOLDER

Writes jhmdb_fit.txt and jhmdb_dev.txt into the folder: the training list in two parts with no video source in both.
Clips are named CLASS/SOURCE_CLASS_...; jhmdb_dev.txt has about a twelfth of the sources.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from sweettok.cli.main import run_reporting_errors
from sweettok.data.lists import load_clips, write_list

DEV_SHARE = 12


def source(path: Path) -> str:
    """The video that a clip was cut from; ValueError if the file is not named as J-HMDB's."""
    name, found, _ = path.stem.rpartition(f"_{path.parent.name}_")
    if not found:
        raise ValueError(f"{path}: expected CLASS/SOURCE_CLASS_..., as J-HMDB's clips are named")
    return name


def is_dev(path: Path) -> bool:
    """Whether the clip is in the held-out part, by a hash of its source."""
    return int(hashlib.sha256(source(path).encode()).hexdigest(), 16) % DEV_SHARE == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, metavar="LIST")
    parser.add_argument("--root", metavar="DIR", help="folder of relative paths in the list")
    parser.add_argument("--classes", required=True, metavar="FILE", help="class names, one a line")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    clips = load_clips(args.train, args.root, args.classes)
    for name, dev in (("fit", False), ("dev", True)):
        part = clips.subset(i for i, path in enumerate(clips.paths) if is_dev(path) == dev)
        paths = (str(path.resolve()) for path in part.paths)
        write_list(args.out / f"jhmdb_{name}.txt", zip(paths, part.labels, strict=True))
    print(f"{args.out}: {len(clips)} clips of {len(clips.class_names)} classes")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
