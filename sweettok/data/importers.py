"""Lists from the official split and annotation files of UCF-101 and Kinetics-600."""

import csv
import re
from collections import defaultdict
from pathlib import Path

from sweettok.data.lists import VIDEO_SUFFIXES, find_files, read_names, some, write_list
from sweettok.data.writer import write_lines
from sweettok.store import check_output


def import_ucf101(root: str | Path, split_dir: str | Path, fold: int, out: str | Path) -> tuple[Path, Path]:
    """Write `train.txt`, `val.txt` and `classes.txt` into `out` from the official UCF-101 split files.

    Args:
        root: the clips, as `<root>/<Class>/v_x.avi`, or split as `<root>/train/<Class>/` and `<root>/test/<Class>/`.
        split_dir: holds `classInd.txt`, `trainlist0<fold>.txt` and `testlist0<fold>.txt` as published.
        fold: 1, 2 or 3.

    Returns the two lists. Their paths start from `root`, the `root` of `load_clips`; labels are the official ones.
    Raises FileNotFoundError for missing files and clips, ValueError for malformed lines.
    """
    root, split_dir, out = Path(root), Path(split_dir), Path(out)
    if fold not in (1, 2, 3):
        raise ValueError(f"UCF-101 has the folds 1, 2 and 3, got {fold}")
    labels = _ucf_classes(split_dir / "classInd.txt")
    divided = (root / "train").is_dir() and (root / "test").is_dir()
    lists, missing = {}, []
    for target, split in (("train", "train"), ("val", "test")):
        source = split_dir / f"{split}list0{fold}.txt"
        clips = [_ucf_clip(line, labels, f"{source}, line {number}") for number, line in _lines(source)]
        lists[target] = [(f"{split}/{clip}" if divided else clip, label) for clip, label in clips]
        missing += [str(root / clip) for clip, _ in lists[target] if not (root / clip).is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} clips of fold {fold} are missing{some(missing)}")
    for path in (out / "train.txt", out / "val.txt", out / "classes.txt"):
        check_output(path, inputs=split_dir.glob("*.txt"))
    for target, entries in lists.items():
        write_list(out / f"{target}.txt", entries)
    write_lines(out / "classes.txt", sorted(labels, key=labels.get))
    return out / "train.txt", out / "val.txt"


def _ucf_classes(source: Path) -> dict[str, int]:
    labels = {}
    for number, line in _lines(source):
        fields = line.split()
        if len(fields) != 2 or not fields[0].isdecimal():
            raise ValueError(f"{source}, line {number}: expected 'number ClassName', got {line!r}")
        labels[fields[1]] = int(fields[0]) - 1
    if sorted(labels.values()) != list(range(len(labels))):
        raise ValueError(f"{source}: class numbers must run from 1 to {len(labels)} without gaps")
    return labels


def _ucf_clip(line: str, labels: dict[str, int], where: str) -> tuple[str, int]:
    fields = line.split()
    name = fields[0].split("/")[0]
    if len(fields) > 2 or "/" not in fields[0] or name not in labels:
        raise ValueError(f"{where}: expected 'Class/clip.avi' and perhaps a number, got {line!r}")
    if len(fields) == 2 and fields[1] != str(labels[name] + 1):
        raise ValueError(f"{where}: the label is {fields[1]}, but {name} is number {labels[name] + 1} in classInd.txt")
    return fields[0], labels[name]


def _lines(source: Path) -> list[tuple[int, str]]:
    if not source.is_file():
        raise FileNotFoundError(f"no split file at {source}")
    lines = enumerate(source.read_text(encoding="utf-8").splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def import_k600(annotations: str | Path, root: str | Path, out: str | Path) -> dict[str, tuple[int, int]]:
    """Write one `<split>.txt` for each split of a Kinetics-600 annotation CSV into `out`, and `classes.txt`.

    Args:
        annotations: CSV with the columns label, youtube_id, time_start, time_end, split.
        root: the clips, anywhere below it, named `<youtube_id>_<start, 6 digits>_<end, 6 digits>` and a video suffix.
        out: an existing `classes.txt` is kept, so that several annotation files use the same order; otherwise classes
            are in code-point order.

    Returns {split: (clips written, clips not found)}: many Kinetics clips are no longer available. Paths in the lists
    start from `root`. Raises FileNotFoundError when no clip is found, ValueError for bad rows and unknown classes.
    """
    root, out = Path(root), Path(out)
    rows = _k600_rows(Path(annotations))
    found = sorted({label for _, label, _ in rows})
    for name in sorted({split for _, _, split in rows}):
        check_output(out / f"{name}.txt", inputs=[annotations])
    check_output(out / "classes.txt", inputs=[annotations])
    names = list(read_names(out / "classes.txt")) if (out / "classes.txt").is_file() else found
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ValueError(f"{annotations}: {len(unknown)} classes are not in {out / 'classes.txt'}{some(unknown)}")
    files = defaultdict(list)
    for path in find_files(root, VIDEO_SUFFIXES):
        files[path.stem].append(path)
    index = {name: number for number, name in enumerate(names)}
    lists, lost = defaultdict(list), defaultdict(int)
    for stem, label, split in rows:
        path = _of_class(files[stem], label)
        if path is None:
            lost[split] += 1
        else:
            lists[split].append((path.relative_to(root).as_posix(), index[label]))
    if not lists:
        raise FileNotFoundError(f"none of the {len(rows)} clips in {annotations} is below {root}")
    for split, entries in lists.items():
        write_list(out / f"{split}.txt", entries)
    write_lines(out / "classes.txt", names)
    return {split: (len(lists[split]), lost[split]) for split in sorted({*lists, *lost})}


def _k600_rows(source: Path) -> list[tuple[str, str, str]]:
    """(file stem, class, split) of every row."""
    rows = []
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        needed = ("label", "youtube_id", "time_start", "time_end", "split")
        if not set(needed) <= set(reader.fieldnames or ()):
            raise ValueError(f"{source}: the header must name {', '.join(needed)}, got {reader.fieldnames}")
        for row in reader:
            start, end = row["time_start"], row["time_end"]
            if not all(row[name] for name in needed) or not (start.isdecimal() and end.isdecimal()):
                raise ValueError(f"{source}, line {reader.line_num}: expected {', '.join(needed)}, got {row}")
            if not re.fullmatch(r"[\w-]+", row["split"]) or row["split"] == "classes":
                where = f"{source}, line {reader.line_num}"
                raise ValueError(f"{where}: split names a file: expected a word such as train, got {row['split']!r}")
            rows.append((f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}", row["label"], row["split"]))
    if not rows:
        raise ValueError(f"{source}: no clips in it")
    return rows


def _of_class(paths: list[Path], label: str) -> Path | None:
    """The file in the folder of its class (spaces perhaps written as underscores), else any."""
    own = [path for path in paths if path.parent.name.replace("_", " ") == label]
    return (own or paths or [None])[0]
