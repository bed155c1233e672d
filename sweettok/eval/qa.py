"""Accuracy of a language model's answers to questions about videos, with closed answers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweettok.data.annotations import AnnotatedClips, load_annotated
from sweettok.data.questions import Question
from sweettok.eval.report import versions
from sweettok.eval.tvalign import Triplet, accuracy_of, by_skill, protocol_hash
from sweettok.vtok.language import VideoLanguageModel
from sweettok.vtok.model import VTok
from sweettok.vtok.output import VisualTokens
from sweettok.words.models import Answer

FORMAT = 1
Asked = tuple[int, Question]  # index of the clip, and a question about it


def evaluate(
    model: VideoLanguageModel,
    data: str | Path,
    root: str | Path | None = None,
    limit: int | None = None,
    blind: bool = False,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Ask all questions about the clips of a list, and return a report. Of each clip, as many frames are shown as in
    training.

    Args:
        data: list or folder of clips, with questions.jsonl beside it.
        root: the folder that paths in the list are relative to.
        limit: only the first so many clips.
        blind: ask without showing the clips.
        batch_size: clips whose tokens are computed and questions are asked together.

    Raises ValueError without questions, and for a model that was saved without its tokenizer.
    """
    annotated = load_annotated(data, root)
    count = len(annotated) if limit is None else min(limit, len(annotated))
    if not blind and model.source is None:
        raise ValueError("this model was saved without a tokenizer, so it can only be asked with --blind")

    cut = isinstance(dict(model.parts.items()).get("tokenizer"), VTok)
    frames = {"max_frames": model.parts.frames} if cut else {}

    def tokens(rows: range) -> VisualTokens | None:
        paths = [annotated.clips.paths[row] for row in rows]
        return None if blind else VisualTokens.stack([model.source(path, **frames) for path in paths])

    begun = time.perf_counter()
    rows, found = ask_all(model, annotated, tokens, range(count), batch_size)
    seconds = time.perf_counter() - begun
    protocol = {"version": FORMAT, "data": annotated.clips.hash, "clips": count, "questions": len(rows)}
    return report(rows, found, protocol) | {"seconds_per_question": seconds / len(rows), "shown": not blind}


def ask_all(
    model: VideoLanguageModel,
    annotated: AnnotatedClips,
    tokens: Callable[[range], VisualTokens | None],
    clips: range,
    batch_size: int = 32,
) -> tuple[list[Triplet], list[str]]:
    """All questions about `clips`, and the likeliest option of each.

    Args:
        tokens: of a range of clips, as one batch.
    """
    rows: list[Triplet] = []
    answers: list[str] = []
    for start in range(clips.start, clips.stop, batch_size):
        part = range(start, min(start + batch_size, clips.stop))
        numbered = [(row - start, *pair) for row in part for pair in enumerate(annotated.questions[row])]
        asked = [(place, question) for place, _, question in numbered]
        shown = tokens(part) if asked else None
        for place, number, question in numbered:
            row = {"id": f"{annotated.clips.keys[start + place]} {number} {question.text}", "skill": question.skill}
            rows.append({**row, "options": question.options, "answer": question.answer})
        answers += ask(model, asked, shown)
    if not rows:
        raise ValueError("there are no questions about these clips: expected questions.jsonl beside their list")
    return rows, answers


def ask(model: VideoLanguageModel, asked: Sequence[Asked], shown: VisualTokens | None) -> list[str]:
    """The likeliest option of each question; those with the same options are scored together."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, (_, question) in enumerate(asked):
        groups[tuple(sorted(question.options))].append(number)
    found = [""] * len(asked)
    for options, numbers in groups.items():
        clips = None if shown is None else _pick(shown, [asked[number][0] for number in numbers])
        scores = model.option_scores(clips, [asked[number][1].text for number in numbers], options)
        for number, best in zip(numbers, scores.argmax(1).tolist(), strict=True):
            found[number] = options[best]
    return found


def _pick(tokens: VisualTokens, rows: list[int]) -> VisualTokens:
    return VisualTokens(tokens.values[rows], tokens.times[rows], tokens.kinds, tokens.key_frame[rows])


def report(rows: Sequence[Triplet], found: Sequence[str], protocol: dict[str, Any]) -> dict[str, Any]:
    """The report of answers, in the form of TV-Align's."""
    answers = [Answer(choice) for choice in found]
    results = {
        "accuracy": accuracy_of(rows, answers),
        "skills": by_skill(rows, answers),
        "chance": float(np.mean([1 / len(row["options"]) for row in rows])),
        "clips": list(_clips(rows, found)),
    }
    about = {"format": FORMAT, "kind": "qa", "protocol": protocol, "protocol_hash": protocol_hash(protocol)}
    return {**about, "results": results, "versions": versions()}


def _clips(rows: Sequence[Triplet], found: Sequence[str]) -> Iterator[dict[str, Any]]:
    for row, choice in zip(rows, found, strict=True):
        yield {"key": row["id"], "skill": row["skill"], "found": choice, "right": choice == row["answer"]}


def summary(report: dict[str, Any]) -> str:
    """The results of a report as lines of text."""
    results, shown = report["results"], "shown the videos" if report["shown"] else "without the videos"
    rows = {"all": results["accuracy"], **results["skills"]}
    lines = [f"questions ({report['protocol_hash'][:12]}), answered {shown}"]
    for name, value in rows.items():
        interval = f" +- {value['interval95']:.1%}" if value["interval95"] is not None else ""
        lines.append(f"  {name:20}{value['mean']:.1%}{interval} of {value['count']}")
    return "\n".join([*lines, f"  {'chance':20}{results['chance']:.1%}"])
