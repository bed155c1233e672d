"""Scenes of several objects: seeded, balanced, with captions and questions that are true of what is drawn."""

import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from sweettok.cli.main import main
from sweettok.data.lists import load_clips
from sweettok.data.questions import KINDS, OF_SKILL, SKILLS, ask, caption, make, parse, solve, target
from sweettok.data.reader import probe
from sweettok.data.scene_files import balanced, scene_of, write_scenes
from sweettok.data.scenes import COLOR_NAMES, EVENTS, HELD_OUT, MOTIONS, SHAPE_NAMES, Scene, Thing, frame_times, sample

CAPTION_WORDS = 110  # the captions and questions of a small language model have few words


@pytest.fixture(scope="module")
def many():
    return [scene_of(index, 3, held_out=index % 2 == 1) for index in range(91)]


def test_seeded(many):
    scene, questions = scene_of(17, 3, held_out=True)
    assert (scene, questions) == many[17]
    assert scene_of(17, 4, held_out=True) != many[17]
    assert np.array_equal(scene.draw(9, 32), many[17][0].draw(9, 32))


def test_the_first_pixels_of_every_object_have_its_colour():
    """A red square that moves right and turns blue half way, drawn by hand at two times."""
    thing = Thing("red", "square", "medium", "right", "turn", "blue", (0.5, 0.5))
    video = Scene((thing,), "snow").draw(25, 64)
    assert video.shape == (3, 25, 64, 64)
    for frame, column, color in ((0, 0.3, (230, 41, 36)), (24, 0.7, (41, 87, 235))):
        assert video[:, frame, 32, round(column * 64)].tolist() == list(color)
        assert (video[0, frame, 32, 32] > 100) == (video[2, frame, 32, 32] > 100)  # the middle is ground


@pytest.mark.parametrize(("event", "seen"), [("disappear", 12), ("appear", 13), ("blink", 22), ("nothing", 25)])
def test_hidden_objects_are_not_drawn(event, seen):
    thing = Thing("red", "circle", "large", "still", event, "1" if event == "blink" else "")
    video, empty = Scene((thing,)).draw(25, 32), Scene(()).draw(25, 32)
    assert int((video != empty).flatten(2).any(2).any(0).sum()) == seen


def test_objects_never_touch_or_leave(many):
    times = frame_times(25)
    for scene, _ in many:
        covers = []
        for thing in scene.things:
            alone = Scene((thing,), scene.ground, scene.offset).draw(25, 48)
            empty = Scene((), scene.ground, scene.offset).draw(25, 48)
            covers.append((alone != empty).any(0))
            assert covers[-1].flatten(1).any(1).equal(covers[-1].new_tensor(thing.shown(times)))
            edges = covers[-1][:, [0, -1]].any() | covers[-1][:, :, [0, -1]].any()
            assert not edges
        assert not len(covers) or int(sum(cover.int() for cover in covers).max()) <= 1


def test_held_out_combinations():
    rng = np.random.default_rng(0)
    assert {color for color, _ in HELD_OUT} == set(COLOR_NAMES) and {shape for _, shape in HELD_OUT} == set(SHAPE_NAMES)
    for _ in range(50):
        known, other = sample(rng), sample(rng, held_out=True)
        assert not {(thing.color, thing.shape) for thing in known.things} & HELD_OUT
        assert (other.things[0].color, other.things[0].shape) in HELD_OUT


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_can_be_made_and_is_true(kind):
    rng = np.random.default_rng(1)
    for answer in KINDS[kind].options:
        scene, question = make(kind, answer, rng)
        assert question.answer == answer == solve(question.text, scene)
        assert answer in question.options and len(set(question.options)) == len(question.options)


def test_wordings_are_three_and_name_one_kind_each(many):
    words = defaultdict(set)
    for _, questions in many:
        for question in questions:
            assert parse(question.text)[0] == question.kind
            words[question.kind].add(question.text)
    assert all(len(set(kind.wordings)) == 3 for kind in KINDS.values()) and len(words) == len(KINDS)
    with pytest.raises(ValueError, match="'What is love\\?' is not a question of these scenes"):
        parse("What is love?")


def test_unclear_questions_are_not_asked():
    rng = np.random.default_rng(0)
    still = Thing("red", "circle", "small", place=(0.5, 0.5))
    diagonal = Thing("blue", "circle", "small", place=(0.8, 0.8))
    assert ask("position-start", Scene((still, diagonal)), rng) is None
    assert ask("colour", Scene((still, diagonal)), rng) is None  # two circles
    assert ask("direction", Scene((still,)), rng) is None and ask("size-compare", Scene((still,)), rng) is None
    assert ask("motion-which", Scene((still,)), rng) is None
    gone = Thing("red", "circle", "small", event="disappear")
    assert ask("count", Scene((gone,)), rng) is None
    assert ask("count", Scene((still,)), rng).answer == "1"


def test_answers_are_balanced(many):
    groups = balanced([questions for _, questions in many])
    counts = Counter((question.kind, question.answer) for group in groups for question in group)
    for name, kind in KINDS.items():
        found = [counts[name, answer] for answer in kind.options]
        assert max(found) - min(found) <= 1, (name, found)
    assert all(group[0] == questions[0] for group, (_, questions) in zip(groups, many, strict=True))
    assert Counter(group[0].skill for group in groups) == dict.fromkeys(SKILLS, 13)
    assert sum(map(len, groups)) > 2 * len(groups)  # other questions than a scene's own are asked too


def test_targets_visit_every_answer():
    for skill in SKILLS:
        wanted = {(kind, answer) for kind in OF_SKILL[skill] for answer in KINDS[kind].options}
        assert wanted == {target(index) for index in range(SKILLS.index(skill), 7 * 3 * 7, 7)}


def test_captions(many):
    assert {thing.motion for scene, _ in many for thing in scene.things} == set(MOTIONS)
    assert {thing.event for scene, _ in many for thing in scene.things} == set(EVENTS)
    vocabulary = set()
    for scene, questions in many:
        text = caption(scene, questions[0])
        vocabulary |= set(re.findall(r"\w+", text.lower()))
        for thing in scene.things:
            assert f"{thing.size} {thing.name}" in text
            assert (f"moves {thing.motion}" in text) or thing.motion == "still"
    assert len(vocabulary) < CAPTION_WORDS
    thing = Thing("red", "square", "small", "left", "blink", "2")
    assert caption(Scene((thing,))) == (
        "one object on snow: a small red square. the red square moves left and blinks twice."
    )


def test_command(tmp_path, capsys):
    out = tmp_path / "set"
    arguments = ["data", "scenes", str(out), "--num-train", "8", "--num-val", "7", "--frames", "7", "--size", "32"]
    assert main(arguments) == 0 and capsys.readouterr().out.strip() == str(out)
    clips = {split: load_clips(out / f"{split}.txt") for split in ("train", "val")}
    assert [len(part) for part in clips.values()] == [8, 7]
    info = probe(clips["val"].paths[0])
    assert (info.num_frames, info.fps, info.height, info.width) == (7, 24.0, 32, 32)
    keys = {key for part in clips.values() for key in part.keys}
    for name in ("captions", "questions", "scenes"):
        rows = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        assert {row["key"] for row in rows} == keys
    before = {path: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}
    write_scenes(out, 8, 7, 7, 32)
    assert before == {path: path.stat().st_mtime_ns for path in (out / "videos").iterdir()}
    assert main([*arguments, "--seed", "1"]) == 2
    assert "holds scenes with seed 0 instead of 1; choose another folder" in capsys.readouterr().err
    assert main([*arguments, "--frames", "3"]) == 2 and "--frames: expected a whole number" in capsys.readouterr().err
    with pytest.raises(ValueError, match="size must be at least 32, got 16"):
        write_scenes(tmp_path / "other", size=16)
