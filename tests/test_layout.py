import math

import numpy as np
import pytest
import torch

from sweettok.tokenizer.layout import TokenLayout

TINY = TokenLayout(num_spatial=2, num_temporal=3, adjectives=5, nouns=4, adverbs=3, verbs=6)
UNION = TokenLayout(num_spatial=2, num_temporal=3, adjectives=5, nouns=4, adverbs=3, verbs=6, lookup="union")


def random_ids(layout, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    segments = layout.segments
    rows = [torch.randint(s.vocab_size, (batch, s.length), generator=generator) + s.vocab_start for s in segments]
    return torch.cat(rows, dim=1)


def test_release_layout():
    layout = TokenLayout()
    assert [(s.name, s.length, s.vocab_size) for s in layout.segments] == [
        ("adjective", 512, 5078),
        ("noun", 256, 5403),
        ("adverb", 2048, 1872),
        ("verb", 1024, 9267),
    ]
    assert [s.start for s in layout.segments] == [0, 512, 768, 2816]
    assert [s.vocab_start for s in layout.segments] == [0, 5078, 10481, 12353]
    assert (layout.length, layout.vocab_size) == (3840, 21620)
    assert round(layout.bits) == 45234


def test_one_word_per_query():
    layout = TokenLayout(modifiers_per_query=1)
    assert layout.length == 2 * (256 + 1024)
    assert layout.bits == pytest.approx(256 * math.log2(5078 * 5403) + 1024 * math.log2(1872 * 9267))


def test_paper_layout():
    layout = TokenLayout(lookup="union")
    assert [(s.name, s.start, s.length, s.vocab_start, s.vocab_size) for s in layout.segments] == [
        ("spatial", 0, 256, 0, 10481),
        ("temporal", 256, 1024, 10481, 11139),
    ]
    assert (layout.length, layout.vocab_size) == (1280, 21620)
    assert round(layout.bits) == 17185


def test_unknown_lookup():
    with pytest.raises(ValueError, match="lookup must be one of modifiers_and_head, union; got 'both'"):
        TokenLayout(lookup="both")


def test_segments_are_adjacent_and_ranges_disjoint():
    segments = TINY.segments
    assert [s.places for s in segments] == [slice(0, 4), slice(4, 6), slice(6, 12), slice(12, 15)]
    assert TINY.length == 15 and TINY.vocab_size == 18
    words = [set(range(s.vocab_start, s.vocab_start + s.vocab_size)) for s in segments]
    assert set.union(*words) == set(range(18)) and sum(map(len, words)) == 18
    assert TINY.segment("verb") is segments[3]
    with pytest.raises(ValueError, match="no segment 'adverbs'; there are adjective, noun, adverb, verb"):
        TINY.segment("adverbs")


def test_local_and_global_ids():
    local = torch.tensor([[4, 0, 1, 2, 3, 0, 2, 1, 0, 0, 1, 2, 5, 0, 3]])
    ids = TINY.to_global(local)
    assert ids.tolist() == [[4, 0, 1, 2, 8, 5, 11, 10, 9, 9, 10, 11, 17, 12, 15]]
    assert ids.dtype == torch.int64 and torch.equal(TINY.to_local(ids), local)
    many = random_ids(TINY, 4)
    assert torch.equal(TINY.to_global(TINY.to_local(many)), many)


def test_split_is_query_major():
    split = TINY.split(torch.arange(15)[None])
    assert {name: part.tolist() for name, part in split.items()} == {
        "adjective": [[[0, 1], [2, 3]]],
        "noun": [[[4], [5]]],
        "adverb": [[[6, 7], [8, 9], [10, 11]]],
        "verb": [[[12], [13], [14]]],
    }


def test_union_gives_each_word_the_id_it_has_apart():
    """Local ids of the union count modifiers, then heads, as the prior lists them; the global id is the same."""
    ranges = {s.name: list(range(s.vocab_start, s.vocab_start + s.vocab_size)) for s in TINY.segments}
    apart = {"spatial": ranges["adjective"] + ranges["noun"], "temporal": ranges["adverb"] + ranges["verb"]}
    for name, words in apart.items():
        segment = UNION.segment(name)
        for local in range(segment.vocab_size):
            ids = torch.zeros(1, UNION.length, dtype=torch.int64)
            ids[:, segment.places] = local
            assert (UNION.to_global(ids)[:, segment.places] == words[local]).all()
            assert torch.equal(UNION.to_local(UNION.to_global(ids)), ids)
    assert UNION.vocab_size == TINY.vocab_size


def test_union_has_one_word_per_query():
    more = TokenLayout(num_spatial=2, num_temporal=3, modifiers_per_query=3, lookup="union")
    for layout in (UNION, more):
        split = layout.split(torch.arange(5)[None])
        assert {name: part.tolist() for name, part in split.items()} == {
            "spatial": [[[0], [1]]],
            "temporal": [[[2], [3], [4]]],
        }


@pytest.mark.parametrize(("place", "low", "high"), [(0, 0, 8), (1, 0, 8), (2, 9, 17), (4, 9, 17)])
def test_union_checks_the_two_ranges(place, low, high):
    ids = torch.tensor([[0, 8, 9, 17, 9]])
    UNION.check(ids)
    for wrong in (low - 1, high + 1):
        changed = ids.clone()
        changed[0, place] = wrong
        with pytest.raises(ValueError, match=f"id {wrong} at position {place} of clip 0 is no .* are {low}..{high} "):
            UNION.check(changed)
    with pytest.raises(ValueError, match="no segment 'noun'; there are spatial, temporal"):
        UNION.segment("noun")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_check_accepts_words_of_the_right_list(dtype):
    ids = random_ids(TINY, 3).to(dtype)
    kept = ids.clone()
    TINY.check(ids)
    assert torch.equal(ids, kept)


@pytest.mark.parametrize("place", range(15))
def test_check_finds_each_wrong_id(place):
    segment = next(s for s in TINY.segments if s.start <= place < s.start + s.length)
    for wrong in (segment.vocab_start - 1, segment.vocab_start + segment.vocab_size, -1, 10**6):
        ids = random_ids(TINY, 3)
        ids[1, place] = wrong
        with pytest.raises(ValueError, match=f"id {wrong} at position {place} of clip 1 is no {segment.name}: those"):
            TINY.check(ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (random_ids(TINY, 2).float(), "must be integers, got torch.float32"),
        (random_ids(TINY, 2).bool(), "must be integers, got torch.bool"),
        (random_ids(TINY, 2).cfloat(), "must be integers, got torch.complex64"),
        (random_ids(TINY, 2)[0], r"shape \(batch >= 1, 15\), got \(15,\)"),
        (random_ids(TINY, 2)[:, :14], r"shape \(batch >= 1, 15\), got \(2, 14\)"),
        (random_ids(TINY, 2)[:0], r"shape \(batch >= 1, 15\), got \(0, 15\)"),
        (np.zeros((1, 15), dtype=np.int64), "must be a torch tensor, got ndarray"),
        ([[0] * 15], "must be a torch tensor, got list"),
    ],
)
def test_check_refuses_other_things(ids, message):
    with pytest.raises(ValueError, match=message):
        TINY.check(ids)
