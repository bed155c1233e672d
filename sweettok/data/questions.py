"""Captions of scenes, and questions with closed answers about seven skills, by construction from the scene's record."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweettok.data.scenes import (
    BLINKS,
    COLOR_NAMES,
    DIRECTIONS,
    EVENTS,
    MOTIONS,
    RADII,
    SHAPE_NAMES,
    Scene,
    Thing,
    sample,
)

SKILLS = ("counting", "direction", "relative position", "size", "colour", "state", "motion")
RELATIONS = ("to the left", "to the right", "above", "below")
STATES = {
    "nothing": "nothing",
    "turn": "it changes colour",
    "grow": "it grows",
    "shrink": "it shrinks",
    "disappear": "it disappears",
    "appear": "it appears",
    "blink": "it blinks",
}
HOW = {
    "still": "it stays still",
    **dict.fromkeys(DIRECTIONS, "in one direction"),
    **{name: name for name in ("up and down", "side to side", "in a circle")},
}
HIDING = ("disappear", "appear", "blink")
RESIZING = ("grow", "shrink")
NUMBERS = ("no", "one", "two", "three", "four", "five")
TIMES = {"1": "once", "2": "twice", "3": "three times"}
CLEAR = 0.2  # least distance, in frame sizes, along the axis of a relation
STRAIGHT = 1.5  # least ratio of the distances along both axes
ATTEMPTS = 10_000

Fields = dict[str, str]  # what a question is about: a, b (names of objects), color, shape


@dataclass(frozen=True)
class Question:
    """A question with closed answers. `kind`: its key in KINDS."""

    skill: str
    kind: str
    text: str
    options: tuple[str, ...]
    answer: str

    def to_dict(self) -> dict[str, Any]:
        named = {"question": self.text, "options": list(self.options), "answer": self.answer}
        return {"skill": self.skill, "kind": self.kind, **named}


@dataclass(frozen=True)
class Kind:
    """A kind of question.

    Attributes:
        options: the answers in a fixed order.
        wordings: the question in three ways, with the fields that it is about.
        answer: the answer in a scene, or None if the question is unclear or has no answer.
        want: from an answer to arguments of `scenes.sample` that make it likely.
        apart: whether the answer is never the first object's own colour, which then is no option.
    """

    skill: str
    options: tuple[str, ...]
    wordings: tuple[str, str, str]
    answer: Callable[[Scene, Fields], str | None]
    want: Callable[[str], dict[str, Any]] = field(default=lambda answer: {})
    apart: bool = False

    def options_for(self, fields: Fields) -> tuple[str, ...]:
        return tuple(o for o in self.options if not (self.apart and fields["a"].startswith(f"{o} ")))


def relation(a: Thing, b: Thing, time: float) -> str | None:
    """Where `a` is, seen from `b`; None if they are near or diagonal."""
    right, down = (a.centers(np.array([time])) - b.centers(np.array([time])))[0]
    if max(abs(right), abs(down)) < max(CLEAR, STRAIGHT * min(abs(right), abs(down))):
        return None
    if abs(right) > abs(down):
        return RELATIONS[int(right > 0)]
    return RELATIONS[2 + int(down > 0)]


def _related(time: float) -> Callable[[Scene, Fields], str | None]:
    def answer(scene: Scene, fields: Fields) -> str | None:
        a, b = scene.named(fields["a"]), scene.named(fields["b"])
        if not a or not b or {a.event, b.event} & {"disappear", "appear"}:
            return None
        return relation(a, b, time)

    return answer


def _of_first(attribute: Callable[[Thing], str | None]) -> Callable[[Scene, Fields], str | None]:
    def answer(scene: Scene, fields: Fields) -> str | None:
        thing = scene.named(fields["a"])
        return thing and attribute(thing)

    return answer


def _number(scene: Scene, fields: Fields) -> str | None:
    """Number of objects, or of those of a colour; None where objects hide or turn, which makes it unclear."""
    if any(thing.event in (*HIDING, "turn") for thing in scene.things):
        return None
    return str(sum(fields.get("color") in (None, thing.color) for thing in scene.things))


def _larger(scene: Scene, fields: Fields) -> str | None:
    a, b = scene.named(fields["a"]), scene.named(fields["b"])
    if not a or not b or {a.event, b.event} & set(RESIZING):
        return None
    order = list(RADII)
    return ("smaller", "equal", "larger")[1 + int(np.sign(order.index(a.size) - order.index(b.size)))]


def _color_of(scene: Scene, fields: Fields) -> str | None:
    things = [thing for thing in scene.things if thing.shape == fields["shape"]]
    return things[0].color if len(things) == 1 and things[0].event != "turn" else None


def _mover(scene: Scene, fields: Fields) -> str | None:
    things = [thing for thing in scene.things if thing.motion != "still"]
    return things[0].color if len(things) == 1 and things[0].event != "turn" else None


KINDS = {
    "count": Kind(
        "counting",
        tuple("12345"),
        ("How many objects are there?", "What is the number of objects?", "Count the objects. How many are there?"),
        _number,
        lambda answer: {"count": int(answer), "event": "nothing"},
    ),
    "count-colour": Kind(
        "counting",
        tuple("123"),
        ("How many {color} objects are there?", "What is the number of {color} objects?", "Count the {color} objects."),
        _number,
        lambda answer: {"alike": int(answer), "count": max(2, int(answer)), "event": "nothing"},
    ),
    "count-blinks": Kind(
        "counting",
        tuple(BLINKS),
        ("How many times does the {a} blink?", "How often does the {a} blink?", "Count how often the {a} blinks."),
        _of_first(lambda thing: thing.detail if thing.event == "blink" else None),
        lambda answer: {"event": "blink", "detail": answer},
    ),
    "direction": Kind(
        "direction",
        tuple(DIRECTIONS),
        ("In which direction does the {a} move?", "Which way does the {a} go?", "Where does the {a} move to?"),
        _of_first(lambda thing: thing.motion if thing.motion in DIRECTIONS else None),
        lambda answer: {"motion": answer},
    ),
    "position-start": Kind(
        "relative position",
        RELATIONS,
        (
            "At the start, where is the {a} relative to the {b}?",
            "Seen from the {b}, where is the {a} at first?",
            "In the first frame, where is the {a} compared to the {b}?",
        ),
        _related(0),
    ),
    "position-end": Kind(
        "relative position",
        RELATIONS,
        (
            "At the end, where is the {a} relative to the {b}?",
            "Seen from the {b}, where is the {a} at last?",
            "In the last frame, where is the {a} compared to the {b}?",
        ),
        _related(1),
    ),
    "size": Kind(
        "size",
        tuple(RADII),
        ("What size is the {a}?", "How large is the {a}?", "Is the {a} small, medium or large?"),
        _of_first(lambda thing: None if thing.event in RESIZING else thing.size),
        lambda answer: {"size": answer},
    ),
    "size-compare": Kind(
        "size",
        ("larger", "smaller", "equal"),
        (
            "Compared to the {b}, is the {a} larger, smaller or equal in size?",
            "Is the {a} larger than the {b}, smaller or equal?",
            "How does the size of the {a} compare to that of the {b}?",
        ),
        _larger,
    ),
    "colour": Kind(
        "colour",
        COLOR_NAMES,
        ("What colour is the {shape}?", "Which colour does the {shape} have?", "What is the colour of the {shape}?"),
        _color_of,
        lambda answer: {"color": answer},
    ),
    "colour-turn": Kind(
        "colour",
        COLOR_NAMES,
        (
            "Which colour does the {a} turn?",
            "What colour is the {a} at the end?",
            "To what colour does the {a} change?",
        ),
        _of_first(lambda thing: thing.detail if thing.event == "turn" else None),
        lambda answer: {"event": "turn", "detail": answer},
        apart=True,
    ),
    "state": Kind(
        "state",
        tuple(STATES.values()),
        ("What happens to the {a}?", "How does the {a} change?", "Which change does the {a} undergo?"),
        _of_first(lambda thing: STATES[thing.event]),
        lambda answer: {"event": EVENTS[list(STATES.values()).index(answer)]},
    ),
    "motion": Kind(
        "motion",
        tuple(dict.fromkeys(HOW.values())),
        ("How does the {a} move?", "What is the motion of the {a}?", "Along which path does the {a} move?"),
        _of_first(lambda thing: HOW[thing.motion]),
        lambda answer: {} if answer == "in one direction" else {"motion": next(m for m in MOTIONS if HOW[m] == answer)},
    ),
    "motion-which": Kind(
        "motion",
        COLOR_NAMES,
        (
            "What colour is the only object that moves?",
            "One object moves. Which colour does it have?",
            "What is the colour of the moving object?",
        ),
        _mover,
        lambda answer: {"color": answer},
    ),
}
OF_SKILL = {skill: tuple(name for name, kind in KINDS.items() if kind.skill == skill) for skill in SKILLS}
_NAME = f"(?:{'|'.join(COLOR_NAMES)}) (?:{'|'.join(SHAPE_NAMES)})"
_PATTERNS = {"a": _NAME, "b": _NAME, "color": "|".join(COLOR_NAMES), "shape": "|".join(SHAPE_NAMES)}


def parse(text: str) -> tuple[str, Fields]:
    """The kind of a question, and what it is about. ValueError for a question that is not of these wordings."""
    for name, kind in KINDS.items():
        for wording in kind.wordings:
            pattern = re.escape(wording).replace(r"\{", "{").replace(r"\}", "}")
            pattern = pattern.format(**{key: f"(?P<{key}>{value})" for key, value in _PATTERNS.items()})
            if found := re.fullmatch(pattern, text):
                return name, found.groupdict()
    raise ValueError(f"{text!r} is not a question of these scenes")


def solve(text: str, scene: Scene) -> str | None:
    """The answer to a question in a scene, or None."""
    name, fields = parse(text)
    return KINDS[name].answer(scene, fields)


def ask(kind: str, scene: Scene, rng: np.random.Generator, subject: int = 0) -> Question | None:
    """A question about the object `subject` of a scene, options in random order; None if it has no clear answer."""
    thing, others = scene.things[subject], [t for n, t in enumerate(scene.things) if n != subject]
    wording = KINDS[kind].wordings[rng.integers(3)]
    fields = {"a": thing.name, "color": thing.color, "shape": thing.shape}
    if "{b}" in wording:
        if not others:
            return None
        fields["b"] = others[rng.integers(len(others))].name
    fields = {name: value for name, value in fields.items() if f"{{{name}}}" in wording}
    answer, options = KINDS[kind].answer(scene, fields), KINDS[kind].options_for(fields)
    if answer not in options:
        return None
    shuffled = tuple(options[n] for n in rng.permutation(len(options)))
    return Question(KINDS[kind].skill, kind, wording.format(**fields), shuffled, answer)


def make(kind: str, answer: str, rng: np.random.Generator, held_out: bool = False) -> tuple[Scene, Question]:
    """A random scene and a question of this kind with this answer; `held_out` as in `scenes.sample`."""
    for _ in range(ATTEMPTS):
        scene = sample(rng, held_out, **KINDS[kind].want(answer))
        question = ask(kind, scene, rng)
        if question is not None and question.answer == answer:
            return scene, question
    raise RuntimeError(f"no scene of {ATTEMPTS} has the answer {answer!r} to a question of kind {kind!r}")


def target(index: int) -> tuple[str, str]:
    """Kind and answer of scene `index`: skills alternate, then their kinds, then the answers."""
    names = OF_SKILL[SKILLS[index % len(SKILLS)]]
    turn, number = divmod(index // len(SKILLS), len(names))
    options = KINDS[names[number]].options
    return names[number], options[turn % len(options)]


def caption(scene: Scene, question: Question | None = None) -> str:
    """Sentences about all objects; with a question about a relation, also about this relation."""
    names = ", ".join(f"{_article(thing.size)} {thing.size} {thing.name}" for thing in scene.things)
    count = len(scene.things)
    lines = [f"{NUMBERS[count]} object{'s' * (count > 1)} on {scene.ground}: {names}"]
    for thing in scene.things:
        actions = [] if thing.motion == "still" else [f"moves {thing.motion}"]
        actions += {"nothing": [], "turn": [f"turns {thing.detail}"]}.get(thing.event, [f"{thing.event}s"])
        if thing.event == "blink":
            actions[-1] += f" {TIMES[thing.detail]}"
        if actions:
            lines.append(f"the {thing.name} {' and '.join(actions)}")
    if question is not None and question.skill == "relative position":
        _, fields = parse(question.text)
        verb = "starts" if question.kind == "position-start" else "ends"
        place = f"{question.answer} of" if question.answer in RELATIONS[:2] else question.answer
        lines.append(f"the {fields['a']} {verb} {place} the {fields['b']}")
    return ". ".join(lines) + "."


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
