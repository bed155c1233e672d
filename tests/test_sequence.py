"""The generator's sequence: every place of it, and an id for every meaning."""

import pytest
import torch

from sweettok.generator.sequence import SequenceLayout
from sweettok.tokenizer.layout import TokenLayout

RELEASE = TokenLayout()
PAPER = TokenLayout(lookup="union")
SMALL = TokenLayout(num_spatial=2, num_temporal=3, adjectives=4, nouns=5, adverbs=6, verbs=7)
SMALL_UNION = TokenLayout(num_spatial=2, num_temporal=3, adjectives=4, nouns=5, adverbs=6, verbs=7, lookup="union")


def some_ids(layout, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randint(s.vocab_start, s.vocab_start + s.vocab_size, (batch, s.length), generator=generator)
        for s in layout.segments
    ]
    return torch.cat(parts, 1)


def words_of(sequence, target):
    """Global ids of the places that hold words."""
    first = sequence.word_start
    words = target[(target >= first) & (target < first + sequence.layout.vocab_size)]
    return words.view(len(target), -1) - first


def test_sizes_of_the_release():
    sequence = SequenceLayout(RELEASE, num_classes=101)
    assert (sequence.class_start, sequence.word_start) == (9, 110)
    assert sequence.segment_starts == (1, 515, 773, 2823)
    assert (sequence.prompt_length, sequence.target_length, sequence.block_size) == (2, 3848, 3849)
    assert sequence.vocab_size == 21730
    assert SequenceLayout(RELEASE, num_classes=101, null_class=True).vocab_size == 21731


def test_sizes_of_the_paper():
    sequence = SequenceLayout(PAPER, num_classes=101)
    assert (sequence.class_start, sequence.word_start) == (5, 106)
    assert sequence.segment_starts == (1, 259)
    assert (sequence.prompt_length, sequence.target_length, sequence.block_size) == (2, 1284, 1285)
    assert sequence.vocab_size == 21726


def test_target_place_by_place():
    sequence, ids = SequenceLayout(SMALL, num_classes=10), some_ids(SMALL, 1)
    words = (ids[0] + sequence.word_start).tolist()
    names = sequence.special_ids
    assert list(names) == ["sos", "ss", "sn", "ts", "tn", "sms", "smn", "tms", "tmn"]
    ss, sn, ts, tn, sms, smn, tms, tmn = (names[n] for n in ("ss", "sn", "ts", "tn", "sms", "smn", "tms", "tmn"))
    expected = [ss, *words[:4], smn, sms, *words[4:6], sn, ts, *words[6:12], tms, tmn, *words[12:], tn]
    assert sequence.target(ids)[0].tolist() == expected


def test_target_of_the_union_place_by_place():
    sequence, ids = SequenceLayout(SMALL_UNION), some_ids(SMALL_UNION, 1)
    words = (ids[0] + 5).tolist()
    assert sequence.target(ids)[0].tolist() == [1, *words[:2], 2, 3, *words[2:], 4]


@pytest.mark.parametrize("layout", [SMALL, SMALL_UNION, RELEASE, PAPER])
def test_ids_come_back(layout):
    ids = some_ids(layout, 3)
    sequence = SequenceLayout(layout, num_classes=7, null_class=True)
    given = ids.clone()
    assert words_of(sequence, sequence.target(ids)).equal(ids)
    assert ids.equal(given)


@pytest.mark.parametrize("layout", [SMALL, SMALL_UNION])
@pytest.mark.parametrize("kind", [{"num_classes": 3, "null_class": True}, {"num_classes": 3}, {}, {"given_clip": True}])
def test_every_id_has_one_meaning(layout, kind):
    """Start and separators, classes, words and the null class share no id and leave none out."""
    sequence = SequenceLayout(layout, **kind)
    meanings = list(sequence.special_ids.values())
    meanings += range(sequence.class_start, sequence.class_start + sequence.num_classes)
    meanings += range(sequence.word_start, sequence.word_start + layout.vocab_size)
    meanings += [sequence.null_id] if sequence.null_class else []
    assert sorted(meanings) == list(range(sequence.vocab_size))
    ids = some_ids(layout)
    prompt = sequence.prompt({"num_classes": torch.tensor([0, 1]), "given_clip": ids}.get(next(iter(kind), None)), 2)
    read = {*prompt.flatten().tolist(), *sequence.target(ids).flatten().tolist()}
    assert set(sequence.special_ids.values()) <= read


def test_the_block_holds_what_is_fed_and_nothing_more():
    for kind in ({"num_classes": 3}, {}, {"given_clip": True}):
        sequence, ids = SequenceLayout(SMALL, **kind), some_ids(SMALL)
        condition = {"num_classes": torch.tensor([0, 2]), "given_clip": ids}.get(next(iter(kind), None))
        prompt = sequence.prompt(condition, batch=2)
        assert prompt.shape == (2, sequence.prompt_length)
        assert prompt.shape[1] + sequence.target(ids).shape[1] - 1 == sequence.block_size


def test_prompts():
    classes = SequenceLayout(SMALL, num_classes=10, null_class=True)
    assert classes.prompt(torch.tensor([0, 9, -1])).tolist() == [[0, 9], [0, 18], [0, 19 + SMALL.vocab_size]]
    assert SequenceLayout(SMALL).prompt(batch=2).tolist() == [[0], [0]]
    given = SequenceLayout(SMALL, given_clip=True)
    ids = some_ids(SMALL)
    assert given.prompt(ids).equal(torch.cat((torch.zeros(2, 1, dtype=torch.long), given.target(ids)), 1))


@pytest.mark.parametrize(
    ("kind", "condition", "message"),
    [
        ({"num_classes": 3}, None, "takes classes; got none"),
        ({"num_classes": 3}, torch.tensor([3]), "0..2 for each clip; got class 3"),
        ({"num_classes": 3}, torch.tensor([-1]), "0..2 for each clip; got class -1"),
        ({"num_classes": 3, "null_class": True}, torch.tensor([-2]), "got class -2"),
        ({"num_classes": 3}, torch.zeros(2, 2), "got shape"),
        ({}, torch.tensor([0]), "takes no condition"),
        ({"given_clip": True}, None, "takes the ids of a given clip; got none"),
        ({"given_clip": True}, torch.zeros(1, 5), "must have shape"),
        ({"given_clip": True}, torch.zeros(1, SMALL.length), "is no noun"),
    ],
)
def test_a_wrong_condition_is_refused(kind, condition, message):
    with pytest.raises(ValueError, match=message):
        SequenceLayout(SMALL, **kind).prompt(condition)


@pytest.mark.parametrize(
    "kind", [{"num_classes": -1}, {"null_class": True}, {"num_classes": 2, "given_clip": True}], ids=str
)
def test_sequences_that_make_no_sense(kind):
    with pytest.raises(ValueError):
        SequenceLayout(SMALL, **kind)
