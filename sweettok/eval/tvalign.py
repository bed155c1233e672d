"""TV-Align: generated videos are judged by questions about what their prompts asked for, as in the VTok paper.

Its triplets of prompt, question and answer are not released. Ours are about scenes (`sweettok.data.scenes`), whose
answers are known and whose videos can be drawn; a file of other triplets can be given in their place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest
from torch import Tensor

from sweettok.data.questions import SKILLS, caption, make, target
from sweettok.data.reader import probe, read_clip
from sweettok.data.scenes import FORMAT as SCENES
from sweettok.data.scenes import Scene
from sweettok.data.writer import write_lines
from sweettok.eval.judges import Judge, Rules, Watcher
from sweettok.eval.metrics import mean_with_interval
from sweettok.eval.report import versions
from sweettok.store import sha256
from sweettok.words.answers import AnswerCache, ask
from sweettok.words.models import Answer

FORMAT, NUM = 1, 1000
SALT = 7  # of the random numbers of triplets, apart from those of `data.scene_files`
DRAWN_FRAMES, DRAWN_SIZE = 25, 64  # of the clips of the ceiling
LEAST_CEILING = 0.99  # accuracy that rules must reach on drawn clips
FIELDS = ("id", "skill", "prompt", "question", "options", "answer")
COMPARABLE = ("tvalign", "qa")  # kinds of reports for `compare_reports`
Triplet = dict[str, Any]


def triplets(num: int = NUM, seed: int = 0) -> list[tuple[Triplet, Scene]]:
    """Triplets about scenes of held-out combinations, skills in turn, and for each a scene in which it is true.

    Of 1,000 triplets, six skills have 143 and the last one 142. A longer list begins with the shorter one.
    """
    found = []
    for index in range(num):
        scene, question = make(*target(index), np.random.default_rng([seed, index, SALT]), held_out=True)
        name = f"{question.skill.replace(' ', '-')}-{index:04d}"
        row = {"id": name, "prompt": caption(scene, question), **question.to_dict(), "scenes": SCENES, "seed": seed}
        found.append((row, scene))
    return found


def write_triplets(path: str | Path, num: int = NUM, seed: int = 0) -> None:
    write_lines(path, (json.dumps(row) for row, _ in triplets(num, seed)))


def read_triplets(path: str | Path) -> list[Triplet]:
    """Rows with at least FIELDS, in JSON Lines. ValueError names the line that is wrong."""
    rows, ids = [], set()
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            missing = [name for name in FIELDS if name not in row]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")
            if len(set(row["options"])) != len(row["options"]) or row["answer"] not in row["options"]:
                raise ValueError(f"options must differ and contain the answer {row['answer']!r}: {row['options']}")
            if row["id"] in ids or "/" in row["id"]:
                raise ValueError(f"its id {row['id']!r} is not the name of one video")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a triplet: {error}") from error
        ids.add(row["id"])
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no triplets")
    return rows


def find_videos(folder: str | Path, rows: Sequence[Triplet]) -> list[Path]:
    """The video `<id>.mp4` of each triplet. FileNotFoundError if some are missing."""
    paths = [Path(folder) / f"{row['id']}.mp4" for row in rows]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(paths)} videos, the first is {missing[0]}")
    return paths


def evaluate(
    source: str | Path,
    videos: str | Path,
    judge: Judge,
    answers: str | Path,
    frames: int | None = None,
    size: int | None = None,
    ceiling: int = 140,
) -> dict[str, Any]:
    """Judge the videos of all triplets.

    Args:
        source: file of triplets. videos: folder with `<id>.mp4` for each.
        answers: JSON Lines file of answers, with which an interrupted run continues.
        frames, size: frames that the judge sees, evenly spaced from the first to the last, and edge of the square in
            which they are padded; None for all frames, and for the files' size.
        ceiling: number of triplets whose drawn clips are judged too; 0 for none, as for triplets that are not ours.

    Returns:
        A report: accuracy, also by skill, of the judge about the videos, about drawn clips (ceiling), without videos
        (blind) and of random choice (chance), and the answer to each question.

    Raises:
        RuntimeError: rules are less than 99% right about drawn clips, so their answers mean nothing.
    """
    rows, hidden = read_triplets(source), {}
    paths = find_videos(videos, rows)
    ours = {(row.get("scenes"), row.get("seed")) for row in rows}
    number = min(ceiling, len(rows)) if len(ours) == 1 and (SCENES, rows[0].get("seed")) in ours else 0
    drawn = triplets(number, rows[0]["seed"]) if number else []
    if [row for row, _ in drawn] != rows[:number]:
        drawn = []
    with AnswerCache(answers) as cache:
        for place, (row, scene) in enumerate(drawn):
            hidden[f"drawn {SCENES} {row['seed']} {place} {frames} {size}"] = partial(_drawn, scene, frames, size)
        found = _ask(judge, [row for row, _ in drawn], hidden, list(hidden), cache)
        top = [answer.choice == row["answer"] for (row, _), answer in zip(drawn, found, strict=True)]
        if isinstance(judge, Rules) and top and np.mean(top) < LEAST_CEILING:
            raise RuntimeError(f"rules answer {np.mean(top):.1%} of the questions about drawn clips, expected 99%")
        keys = [f"{sha256(path)} {frames} {size}" for path in paths]
        clips = {key: partial(_read, path, frames, size) for key, path in zip(keys, paths, strict=True)}
        shown = _ask(judge, rows, clips, keys, cache)
        blind = None if isinstance(judge, Rules) else _ask(judge, rows, {}, [""] * len(rows), cache)
    protocol = {"version": FORMAT, "triplets": sha256(source), "num": len(rows), "frames": frames, "size": size}
    protocol["judge"] = json.loads(json.dumps(judge.identity))
    results = {
        "accuracy": accuracy_of(rows, shown),
        "skills": by_skill(rows, shown),
        "unanswered": sum(answer.choice is None for answer in shown),
        "chance": float(np.mean([1 / len(row["options"]) for row in rows])),
        "blind": blind and accuracy_of(rows, blind),
        "ceiling": mean_with_interval([float(right) for right in top]) if top else None,
        "clips": [
            {"key": row["id"], "skill": row["skill"], "found": answer.choice, "right": answer.choice == row["answer"]}
            for row, answer in zip(rows, shown, strict=True)
        ],
    }
    report = {"format": FORMAT, "kind": "tvalign", "protocol": protocol, "protocol_hash": protocol_hash(protocol)}
    return {**report, "videos": str(videos), "results": results, "versions": versions()}


def protocol_hash(protocol: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def _ask(
    judge: Judge, rows: Sequence[Triplet], clips: dict[str, Any], keys: Sequence[str], cache: AnswerCache
) -> list[Answer]:
    questions = [(key, row["question"], tuple(row["options"])) for key, row in zip(keys, rows, strict=True)]
    return ask(Watcher(judge, clips), questions, cache)[0] if questions else []


def _skills(rows: Sequence[Triplet]) -> list[str]:
    names = dict.fromkeys(row["skill"] for row in rows)
    return sorted(names, key=lambda name: SKILLS.index(name) if name in SKILLS else len(SKILLS))


def by_skill(rows: Sequence[Triplet], answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Accuracy of the answers for each skill, in a fixed order."""
    return {skill: accuracy_of([r for r in rows if r["skill"] == skill], answers, rows) for skill in _skills(rows)}


def accuracy_of(
    rows: Sequence[Triplet], answers: Sequence[Answer], among: Sequence[Triplet] | None = None
) -> dict[str, Any]:
    """Accuracy of the answers to some of the rows `among`, by default to all."""
    found = {row["id"]: answer.choice for row, answer in zip(among or rows, answers, strict=True)}
    return mean_with_interval([float(found[row["id"]] == row["answer"]) for row in rows])


def _places(total: int, frames: int | None) -> np.ndarray:
    return np.arange(total) if frames is None else np.linspace(0, total - 1, frames).round().astype(int)


def _read(path: Path, frames: int | None, size: int | None) -> Tensor:
    total = probe(path).num_frames
    return read_clip(path, total, size, "first", resize="pad")[:, _places(total, frames)]


def _drawn(scene: Scene, frames: int | None, size: int | None) -> Tensor:
    return scene.draw(DRAWN_FRAMES, size or DRAWN_SIZE)[:, _places(DRAWN_FRAMES, frames)]


def read_report(path: str | Path) -> dict[str, Any]:
    """A report of `evaluate`, or of answers about videos (`sweettok.eval.qa`). ValueError for another file."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        if report["kind"] not in COMPARABLE or report["protocol_hash"] != protocol_hash(report["protocol"]):
            raise ValueError("its kind is not tvalign or qa, or its protocol does not match its protocol_hash")
        return report
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no report of `sweettok eval tvalign` or `qa`: {error}") from error


def compare_reports(first: str | Path, second: str | Path, force: bool = False) -> str:
    """Two reports side by side: the difference with its 95% interval over questions, which are paired, and the exact
    McNemar test of the questions that only one of them has right.

    Raises ValueError if the protocols differ, unless `force`, or if the questions do.
    """
    one, other = read_report(first), read_report(second)
    if one["kind"] != other["kind"]:
        raise ValueError(f"these reports are of {one['kind']} and of {other['kind']}: give two of the same kind")
    different = [name for name, value in one["protocol"].items() if other["protocol"].get(name) != value]
    if different and not force:
        names = ", ".join(different)
        raise ValueError(f"the protocols of these reports differ in {names}: their numbers must not be compared")
    sides = [{clip["key"]: clip for clip in report["results"]["clips"]} for report in (one, other)]
    if sides[0].keys() != sides[1].keys():
        raise ValueError("these reports are of different triplets")
    lines = [f"{'':20}{'first':>8}{'second':>8}{'difference':>18}{'only first':>12}{'only second':>13}{'p':>9}"]
    for skill in ("all", *one["results"]["skills"]):
        keys = [key for key, clip in sides[0].items() if skill in ("all", clip["skill"])]
        right = np.array([[side[key]["right"] for key in keys] for side in sides])
        losses, gains = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        p = binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
        a, b = right.mean(1)
        half = mean_with_interval((right[1] * 1.0 - right[0]).tolist())["interval95"]
        difference = f"{b - a:+.1%}" + (f" +- {half:.1%}" if half is not None else "")
        lines.append(f"{skill:20}{a:8.1%}{b:8.1%}{difference:>18}{losses:12}{gains:13}{p:9.4f}")
    return "\n".join([*lines, *(f"PROTOCOL DIFFERS in {name}" for name in different)])


def summary(report: dict[str, Any]) -> str:
    """The results of a report as lines of text."""
    results, protocol = report["results"], report["protocol"]
    name = (
        f"TV-Align ({report['protocol_hash'][:12]}), {protocol['num']} questions, judge {protocol['judge']['backend']}"
    )
    rows = {"all": results["accuracy"], **results["skills"]}
    rows |= {name: results[name] for name in ("blind", "ceiling") if results[name] is not None}
    lines = [f"  {skill:20}{_percent(value)}" for skill, value in rows.items()]
    last = f"  {'chance':20}{results['chance']:.1%}; {results['unanswered']} questions without a valid answer"
    return "\n".join([name, *lines, last])


def _percent(value: dict[str, Any]) -> str:
    interval = f" +- {value['interval95']:.1%}" if value["interval95"] is not None else ""
    return f"{value['mean']:.1%}{interval} of {value['count']}"
