"""Word graphs, the safe prior files, and priors built from tagged captions."""

import json

import numpy as np
import pytest
import torch

from sweettok.cli.main import main
from sweettok.priors import Prior, WordGraph, load_prior, save_prior
from sweettok.priors.build import build_prior
from sweettok.priors.chunks import pack
from sweettok.priors.cooccurrence import shared_captions
from sweettok.priors.vectors import word_vectors


def graph(**changes):
    parts = {
        "modifiers": ("red", "big"),
        "heads": ("car", "dog", "red"),
        "vectors": torch.arange(10.0).reshape(5, 2),
        "edges": torch.tensor([[0, 0, 1, 3], [2, 2, 3, 3]]),
        "counts": torch.tensor([4, 3, 2, 1, 1]),
    }
    return WordGraph(**{**parts, **changes})


def test_sizes():
    words = graph()
    assert (words.num_modifiers, words.num_heads, words.dim) == (2, 3, 2)
    assert words.words == ("red", "big", "car", "dog", "red")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modifiers": ("red", "red")}, "lists 'red' more than once"),
        ({"heads": ()}, "heads must be a non-empty tuple"),
        ({"heads": ["car", "dog", "red"]}, "heads must be a non-empty tuple"),
        ({"vectors": torch.zeros(4, 2)}, r"torch.float32 of shape \(5, \*\), got torch.float32 \(4, 2\)"),
        ({"vectors": torch.zeros(5, 2).double()}, "got torch.float64"),
        ({"vectors": torch.full((5, 2), torch.nan)}, "finite"),
        ({"edges": torch.tensor([[0], [5]])}, r"indices 0..4, got 0..5"),
        ({"edges": torch.tensor([[0, 1]])}, "edges must be"),
        ({"counts": torch.ones(5)}, "counts must be torch.int64"),
    ],
)
def test_graph_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        graph(**changes)


def test_native_files_round_trip_and_are_reproducible(tmp_path):
    prior = Prior(graph(), graph(counts=None))
    for name in "ab":
        save_prior(prior, tmp_path / name)
    again = load_prior(tmp_path / "a")
    for side in ("spatial", "temporal"):
        old, new = getattr(prior, side), getattr(again, side)
        assert new.words == old.words
        assert torch.equal(new.vectors, old.vectors) and torch.equal(new.edges, old.edges)
        assert (tmp_path / "a" / f"{side}.safetensors").read_bytes() == (
            tmp_path / "b" / f"{side}.safetensors"
        ).read_bytes()
    assert torch.equal(again.spatial.counts, prior.spatial.counts) and again.temporal.counts is None


def test_missing_and_broken_native_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"spatial.safetensors.*mlc_codebook_noun_adj.pkl"):
        load_prior(tmp_path)
    save_prior(Prior(graph(), graph()), tmp_path)
    path = tmp_path / "temporal.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="temporal.safetensors"):
        load_prior(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="found: spatial.safetensors"):
        load_prior(tmp_path)


CAPTIONS = [
    {
        "key": "a",
        "text": "a red car drives fast",
        "words": [["Red", "adjective"], ["car", "noun"], ["drives", "verb"], ["fast", "adverb"]],
    },
    {
        "key": "b",
        "text": "the red red car and the big dog",
        "words": [["red", "adjective"], ["red", "adjective"], ["car", "noun"], ["big", "adjective"], ["dog", "noun"]],
    },
    {
        "key": "c",
        "text": "big reds fast fast",
        "words": [["big", "adjective"], ["red", "noun"], ["fast", "verb"], ["fast", "adverb"], ["slowly", "adverb"]],
    },
]


@pytest.fixture
def caption_file(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in CAPTIONS) + "\n")
    return path


def pairs(words):
    return sorted((words.words[a], words.words[b]) for a, b in words.edges.T.tolist())


WORDS = [caption["words"] for caption in CAPTIONS]


def test_build_counts_and_connects():
    prior = build_prior(WORDS, dim=4)
    assert prior.spatial.modifiers == ("red", "big")  # counted 3 and 2; most frequent first
    assert prior.spatial.heads == ("car", "dog")  # the noun "red" is an adjective too
    assert prior.spatial.counts.tolist() == [3, 2, 2, 1]
    assert pairs(prior.spatial) == [("big", "car"), ("big", "dog"), ("red", "car"), ("red", "car"), ("red", "dog")]
    assert prior.temporal.words == ("fast", "slowly", "drives", "fast")
    assert sorted(map(tuple, prior.temporal.edges.T.tolist())) == [(0, 2), (0, 3), (1, 3)]


def test_build_keeps_only_the_closest_partners():
    """ "big" stands with everything; by association "car" belongs to "red" and "dog" to "old"."""
    spoken = [("red", "car")] * 3 + [("old", "dog")] * 2
    spoken += [("big", "car"), ("big", "dog"), ("big", "cat"), ("old", "cat")]
    tail = (("fast", "adverb"), ("go", "verb"))
    captions = [((modifier, "adjective"), (head, "noun"), *tail) for modifier, head in spoken]
    every = build_prior(captions, dim=2)
    assert len(pairs(every.spatial)) == 9 and len(set(pairs(every.spatial))) == 6
    # Captions together / (captions of one * captions of the other): red car 3/12, old dog 2/9, big car 1/12,
    # big dog 1/9, big cat 1/6, old cat 1/6. A tie goes to the word that is listed first.
    one = build_prior(captions, dim=2, neighbors=1)
    assert pairs(one.spatial) == [("big", "cat"), ("old", "dog"), ("red", "car")]
    # With two, "big car" stays because it is among the two closest of "car", though not of "big".
    two = build_prior(captions, dim=2, neighbors=2)
    assert pairs(two.spatial) == sorted(set(pairs(every.spatial)))
    assert one.temporal.edges.tolist() == [[0], [1]]  # nine captions, one edge
    assert torch.equal(one.spatial.vectors, every.spatial.vectors) and one.spatial.words == every.spatial.words
    with pytest.raises(ValueError, match="neighbors must be at least 1, got 0"):
        build_prior(captions, dim=2, neighbors=0)


def test_build_min_count_and_errors():
    with pytest.raises(ValueError, match="no verb is counted at least 2 times"):
        build_prior(WORDS, dim=2, min_count=2)
    with pytest.raises(ValueError, match=r"dim must be from 1 to the number of words \(8\), got 9"):
        build_prior(WORDS, dim=9)


def vectors_of(captions, words, dim):
    return word_vectors(shared_captions([pack(captions)], words), len(captions), words, dim)


def test_vectors_follow_ppmi():
    """At full width the vectors' Gram matrix is |PPMI| (the positive square root of its square), up to scale."""
    words = [(name, "noun") for name in "abcd"]
    captions = [[words[0], words[1]], [words[0]], [words[2], words[3]], [words[1], words[2]]]
    table = vectors_of(captions, words, dim=4).astype(np.float64)
    occurs = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]]) / 1.0
    share = occurs.mean(0)
    with np.errstate(divide="ignore"):
        ppmi = np.maximum(np.log(occurs.T @ occurs / 4 / np.outer(share, share)), 0)
    values, basis = np.linalg.eigh(ppmi)
    expected = basis @ np.diag(np.abs(values)) @ basis.T
    gram = table @ table.T
    np.testing.assert_allclose(gram / np.trace(gram), expected / np.trace(expected), atol=1e-6)


def test_vectors_tell_every_word_apart():
    words = [(name, "noun") for name in "abcdef"]
    together = [[words[0], words[1]], [words[2], words[3]], [words[2], words[3], words[4]], [words[5]]]
    everywhere = [words, words]  # no information at all: every row is zero
    for captions in (together, everywhere):
        table = vectors_of(captions, words, dim=3)
        distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + 9 * np.eye(6)
        assert np.isfinite(table).all() and distance.min() > 1e-3
        assert np.sqrt((table**2).mean()) == pytest.approx(1)
        assert np.array_equal(table, vectors_of(captions, words, dim=3))


def test_vectors_of_a_large_vocabulary_are_reproducible_and_leading():
    rng = np.random.RandomState(3)
    words = [(f"w{i}", "noun") for i in range(1100)]
    captions = [[words[i] for i in np.unique(rng.randint(0, 1100, 12))] for _ in range(400)] + [[w] for w in words]
    table = vectors_of(captions, words, dim=5)
    assert table.shape == (1100, 5) and np.array_equal(table, vectors_of(captions, words, dim=5))
    lengths = np.linalg.norm(table, axis=0)
    assert (np.diff(lengths) <= 1e-4).all()  # largest first
    dense = vectors_of(captions, words, dim=600)[:, :5]  # the full decomposition
    cosine = (table * dense).sum(0) / np.linalg.norm(table, axis=0) / np.linalg.norm(dense, axis=0)
    np.testing.assert_allclose(cosine, 1, atol=1e-3)


def test_build_takes_any_stream_of_captions():
    words = (("red", "adjective"), ("car", "noun"), ("fast", "adverb"), ("go", "verb"))
    prior = build_prior((words for _ in range(3)), dim=2)
    assert prior.spatial.edges.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_command_line(caption_file, tmp_path, capsys):
    out = tmp_path / "prior"
    assert main(["priors", "build", "--captions", str(caption_file), "--out", str(out), "--dim", "3"]) == 0
    built = capsys.readouterr().out
    assert "spatial: 2 adjectives + 2 nouns, vectors of 3, 5 edges" in built and "adjectives: red, big" in built
    assert main(["priors", "show", str(out)]) == 0
    assert capsys.readouterr().out.startswith(built)
    assert main(["priors", "show", str(tmp_path / "nowhere")]) == 2
    assert "error: no complete prior" in capsys.readouterr().err
