"""Writing a dataset of scenes: clips, lists, captions, questions and records."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sweettok.data.lists import write_list
from sweettok.data.questions import KINDS, Question, ask, caption, make, target
from sweettok.data.scenes import FORMAT, LEAST_FRAMES, Scene
from sweettok.data.synthetic_files import claim
from sweettok.data.writer import write_lines, write_video

SPLITS = ("train", "val")
FILES = ("captions.jsonl", "questions.jsonl", "scenes.jsonl")  # after manifest.json and the lists


def scene_of(index: int, seed: int, held_out: bool = False) -> tuple[Scene, list[Question]]:
    """Scene `index` of the infinite series of a seed: its own question, then one of every other kind that it allows."""
    rng = np.random.default_rng([seed, index, held_out])
    scene, own = make(*target(index), rng, held_out)
    others = (ask(kind, scene, rng, int(rng.integers(len(scene.things)))) for kind in KINDS if kind != own.kind)
    return scene, [own, *(question for question in others if question is not None)]


def balanced(questions: list[list[Question]]) -> list[list[Question]]:
    """The questions of each scene without those of answers that are more frequent than others of their kind.

    The first question of a scene always stays. Every answer of a kind is then given equally often, give or take one.
    """
    totals, own = Counter(), Counter()
    for group in questions:
        own[group[0].kind, group[0].answer] += 1
        totals.update((question.kind, question.answer) for question in group)
    most = {
        kind: max(
            min(totals[kind, answer] for answer in KINDS[kind].options),
            max(own[kind, answer] for answer in KINDS[kind].options),
        )
        for kind in KINDS
    }
    counts, kept = own.copy(), []
    for first, *others in questions:
        group = [first]
        for question in others:
            if counts[question.kind, question.answer] < most[question.kind]:
                counts[question.kind, question.answer] += 1
                group.append(question)
        kept.append(group)
    return kept


def write_scenes(
    out: str | Path,
    num_train: int = 2048,
    num_val: int = 256,
    frames: int = 25,
    size: int = 64,
    fps: float = 24,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write the missing files of a dataset into the folder `out`, and return the folder.

    It has `videos/<split>_<number>.mp4` (H.264), the lists `train.txt` and `val.txt`, and in JSON Lines, with the keys
    of `lists.load_clips`: `captions.jsonl` {"key", "text"}, `questions.jsonl` {"key", "skill", "kind", "question",
    "options", "answer"}, and `scenes.jsonl`, the records {"key", "ground", "offset", "things"}. Scenes of val have a
    subject of a combination of colour and shape that no scene of train has. Answers are balanced in each split.

    Raises ValueError for a folder that was written with other parameters.
    """
    out = Path(out)
    least = {"num_train": 0, "num_val": 0, "clips": 1, "frames": LEAST_FRAMES, "size": 32, "seed": 0}
    for (name, low), value in zip(
        least.items(), (num_train, num_val, num_train + num_val, frames, size, seed), strict=True
    ):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    numbers = {"num_train": num_train, "num_val": num_val}
    manifest = {"kind": "scenes", "format": FORMAT, **numbers, "frames": frames, "size": size, "fps": fps, "seed": seed}
    claim(out, manifest, (*(f"{split}.txt" for split in SPLITS), *FILES), "scenes")
    lines: dict[str, list[str]] = defaultdict(list)
    for split, number in zip(SPLITS, numbers.values(), strict=True):
        scenes, questions = [], []
        for index in tqdm(range(number), desc=f"drawing {out} {split}", disable=None if progress else True):
            scene, asked = scene_of(index, seed, split == "val")
            path = out / f"videos/{split}_{index:05d}.mp4"
            if not path.exists():
                write_video(path, scene.draw(frames, size), fps, full_chroma=True, replaceable=False)
            scenes.append(scene)
            questions.append(asked)
        for index, (scene, asked) in enumerate(zip(scenes, balanced(questions), strict=True)):
            key = f"videos/{split}_{index:05d}"
            lines["captions.jsonl"].append(json.dumps({"key": key, "text": caption(scene, asked[0])}))
            lines["scenes.jsonl"].append(json.dumps({"key": key, **asdict(scene)}))
            lines["questions.jsonl"] += [json.dumps({"key": key, **question.to_dict()}) for question in asked]
        write_list(out / f"{split}.txt", ((f"videos/{split}_{index:05d}.mp4", None) for index in range(number)))
    for name in FILES:
        write_lines(out / name, lines[name])
    return out
