"""Captions, questions and records of the clips of a list, from the JSON Lines that `sweettok data scenes` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweettok.data.lists import ClipList, load_clips, some
from sweettok.data.questions import Question
from sweettok.data.scenes import Scene, Thing

CAPTIONS, QUESTIONS, SCENES = "captions.jsonl", "questions.jsonl", "scenes.jsonl"


@dataclass(frozen=True)
class AnnotatedClips:
    """Clips with their texts, in the order of `clips`.

    Attributes:
        captions: of each clip.
        questions: of each clip, any number.
        scenes: of each clip its record; None without the file of records.
    """

    clips: ClipList
    captions: tuple[str, ...]
    questions: tuple[tuple[Question, ...], ...]
    scenes: tuple[Scene, ...] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def texts(self) -> Iterator[str]:
        """All captions, questions and answers, to train a tokenizer on."""
        for caption, asked in zip(self.captions, self.questions, strict=True):
            yield caption
            for question in asked:
                yield from (question.text, *question.options)


def load_annotated(source: str | Path, root: str | Path | None = None) -> AnnotatedClips:
    """The clips of a list or folder, as `load_clips` reads them, and the annotations beside it.

    Args:
        root: the folder that keys and paths in a list are relative to; by default the list's. It holds captions.jsonl,
            {"key", "text"} of every clip, and may hold questions.jsonl, {"key", "skill", "kind", "question", "options",
            "answer"}, and scenes.jsonl, the records of scenes. Lines of other clips are ignored.

    Raises FileNotFoundError without captions.jsonl, ValueError for malformed lines and for clips without a caption or,
    if there are records, without a record; and as `load_clips` does.
    """
    clips, source = load_clips(source, root), Path(source)
    folder = Path(root) if root is not None else source if source.is_dir() else source.parent
    if not (folder / CAPTIONS).is_file():
        raise FileNotFoundError(
            f"no {folder / CAPTIONS}: expected the captions of {source}, as sweettok data scenes writes them"
        )
    captions, scenes = {}, {}
    asked: dict[str, list[Question]] = {key: [] for key in clips.keys}
    for line in _read(folder / CAPTIONS, lambda line: (line["key"], str(line["text"]))):
        captions[line[0]] = line[1]
    for key, question in _read(folder / QUESTIONS, _question) if (folder / QUESTIONS).is_file() else ():
        if key in asked:
            asked[key].append(question)
    for key, scene in _read(folder / SCENES, _scene) if (folder / SCENES).is_file() else ():
        scenes[key] = scene
    for name, found in (("caption", captions), *([("record", scenes)] if scenes else [])):
        if missing := [key for key in clips.keys if key not in found]:
            raise ValueError(f"{source}: {len(missing)} clips have no {name} in {folder}{some(missing)}")
    return AnnotatedClips(
        clips,
        tuple(captions[key] for key in clips.keys),
        tuple(tuple(questions) for questions in asked.values()),
        tuple(scenes[key] for key in clips.keys) if scenes else None,
    )


def _read(path: Path, parse: Any) -> Iterator[tuple[str, Any]]:
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            yield parse(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}: {reason}") from error


def _question(line: dict[str, Any]) -> tuple[str, Question]:
    options, answer = line["options"], line["answer"]
    if not isinstance(options, list) or answer not in options or len(set(options)) != len(options):
        raise ValueError(f"options must be a list of different texts with the answer {answer!r}; got {options!r}")
    return line["key"], Question(line["skill"], line.get("kind", ""), line["question"], tuple(options), answer)


def _scene(line: dict[str, Any]) -> tuple[str, Scene]:
    things = tuple(Thing(**{**thing, "place": tuple(thing["place"])}) for thing in line["things"])
    return line["key"], Scene(things, line["ground"], tuple(line["offset"]))
