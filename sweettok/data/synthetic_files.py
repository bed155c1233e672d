"""Folders of synthetic clips, written so that an interrupted run can be completed."""

import json
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from sweettok.data.lists import write_list
from sweettok.data.synthetic import CLASSES, FORMAT, indexed_scene
from sweettok.data.writer import write_lines, write_video

WRITTEN = ("train.txt", "val.txt", "classes.txt", "captions.jsonl")  # after manifest.json


def write_synthetic(
    out: str | Path,
    num_train: int = 256,
    num_val: int = 64,
    frames: int = 24,
    size: int | tuple[int, int] = 64,
    fps: float = 12,
    seed: int = 0,
    plain: bool = False,
    progress: bool = False,
) -> Path:
    """Write the missing files of a dataset into the folder `out`, and return the folder.

    It has `videos/<class>/<split>_<number>.mp4` (H.264), `train.txt` and `val.txt` (labels from 1), `classes.txt`, and
    `captions.jsonl`: {"key", "text", "words": [[word, part of speech], ...]} with the content words and the keys of
    `lists.load_clips`. Validation clips follow the training clips in the series of the seed. `plain` scenes
    are few kinds; their validation clips have combinations of ground, colour and shape that no training clip has.

    Raises ValueError for a folder that was written with other parameters.
    """
    out = Path(out)
    height, width = (size, size) if isinstance(size, int) else size
    least = {"num_train": 0, "num_val": 0, "clips": 1, "frames": 1, "height": 8, "width": 8, "seed": 0}
    values = (num_train, num_val, num_train + num_val, frames, height, width, seed)
    for (name, low), value in zip(least.items(), values, strict=True):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    splits = {"num_train": num_train, "num_val": num_val}
    manifest = {"format": FORMAT, **splits, "frames": frames, "size": [height, width], "fps": fps, "seed": seed}
    manifest["plain"] = plain
    claim(out, manifest, WRITTEN, "synthetic clips")
    lists: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    captions = []
    for index in tqdm(range(num_train + num_val), desc=f"drawing {out}", disable=None if progress else True):
        split, number = ("train", index) if index < num_train else ("val", index - num_train)
        label, scene = indexed_scene(index, seed, plain, held_out=split == "val")
        key = f"videos/{CLASSES[label]}/{split}_{number:05d}"
        path = out / f"{key}.mp4"
        if not path.exists():
            write_video(path, scene.draw(frames, height, width), fps, full_chroma=True, replaceable=False)
        lists[split].append((f"{key}.mp4", label))
        caption = scene.caption()
        captions.append(json.dumps({"key": key, "text": caption.text, "words": caption.content}))
    for split, entries in lists.items():
        write_list(out / f"{split}.txt", entries)
    write_lines(out / "classes.txt", CLASSES)
    write_lines(out / "captions.jsonl", captions)
    return out


def claim(out: Path, manifest: dict, written: Iterable[str], content: str) -> None:
    """Write the parameters of a folder before its first clip. Raises ValueError for a folder with others.

    written: files that are in the folder only after its manifest.json. content: what the clips are, for errors.
    """
    path = out / "manifest.json"
    if not path.exists():
        theirs = [name for name in written if (out / name).exists()]
        if theirs:
            raise ValueError(f"{out} has a {theirs[0]} that is not of {content}: choose another folder")
        write_lines(path, [json.dumps(manifest, indent=2)])
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in manifest if found.get(name) != manifest[name]]
    if changed:
        differences = ", ".join(f"{name} {found.get(name)} instead of {manifest[name]}" for name in changed)
        raise ValueError(f"{out} holds {content} with {differences}; choose another folder or delete it")
