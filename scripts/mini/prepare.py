"""Split the training list of J-HMDB, and write captions from its class names.

    python scripts/mini/prepare.py --train LIST --classes FILE --out FOLDER

Writes into the folder: jhmdb_fit.txt and jhmdb_dev.txt, the training list in two parts with no video source in both
(clips are named CLASS/SOURCE_CLASS_...; jhmdb_dev.txt has about a twelfth of the sources), and captions.jsonl, for the
caption loss of stage 1: the words of each clip's class, with their parts of speech.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from sweettok.cli.main import run_reporting_errors
from sweettok.data.lists import ClipList, load_clips, write_list
from sweettok.data.writer import write_lines

DEV_SHARE = 12
VERBS, NOUNS = "verb", "noun"
# Words of the class names, in dictionary form. "pull up" is the only one that is not its parts: chin-ups at a bar.
WORDS = {
    "brush_hair": {"brush": VERBS, "hair": NOUNS},
    "catch": {"catch": VERBS},
    "clap": {"clap": VERBS},
    "climb_stairs": {"climb": VERBS, "stair": NOUNS},
    "golf": {"golf": NOUNS},
    "jump": {"jump": VERBS},
    "kick_ball": {"kick": VERBS, "ball": NOUNS},
    "pick": {"pick": VERBS},
    "pour": {"pour": VERBS},
    "pullup": {"pull": VERBS},
    "push": {"push": VERBS},
    "run": {"run": VERBS},
    "shoot_ball": {"shoot": VERBS, "ball": NOUNS},
    "shoot_bow": {"shoot": VERBS, "bow": NOUNS},
    "shoot_gun": {"shoot": VERBS, "gun": NOUNS},
    "sit": {"sit": VERBS},
    "stand": {"stand": VERBS},
    "swing_baseball": {"swing": VERBS, "baseball": NOUNS},
    "throw": {"throw": VERBS},
    "walk": {"walk": VERBS},
    "wave": {"wave": VERBS},
}


def source(path: Path) -> str:
    """The video that a clip was cut from; ValueError if the file is not named as J-HMDB's."""
    name, found, _ = path.stem.rpartition(f"_{path.parent.name}_")
    if not found:
        raise ValueError(f"{path}: expected CLASS/SOURCE_CLASS_..., as J-HMDB's clips are named")
    return name


def is_dev(path: Path) -> bool:
    """Whether the clip is in the held-out part, by a hash of its source."""
    return int(hashlib.sha256(source(path).encode()).hexdigest(), 16) % DEV_SHARE == 0


def captions(clips: ClipList) -> list[str]:
    """JSON lines {"key", "words"} of clips; ValueError for an unknown class."""
    unknown = sorted({path.parent.name for path in clips.paths} - WORDS.keys())
    if unknown:
        raise ValueError(f"no words for the classes {', '.join(unknown)}: add them to WORDS in {__file__}")
    pairs = ((key, WORDS[path.parent.name].items()) for key, path in zip(clips.keys, clips.paths, strict=True))
    return [json.dumps({"key": key, "words": [list(word) for word in words]}) for key, words in pairs]


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
    # Keys are those of the written lists, whose paths are absolute.
    lines = [line for name in ("fit", "dev") for line in captions(load_clips(args.out / f"jhmdb_{name}.txt"))]
    write_lines(args.out / "captions.jsonl", lines)
    print(f"{args.out}: {len(lines)} clips of {len(clips.class_names)} classes")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
