"""Summaries of a prior: nearest words, overlap, statistics, plot."""

import json
import re

import pytest
import torch

from sweettok.cli.main import main
from sweettok.priors import Prior, WordGraph, load_prior, save_prior
from sweettok.priors.build import Rules, build
from sweettok.priors.chunks import pack
from sweettok.priors.summary import describe, describe_neighbors, describe_overlap, partners, plot, smoothed, statistics


def line_graph(**changes):
    """Adjectives a b c d at 0, 1, 3, 7; nouns x and y; a and d hang on x, b and c on y."""
    parts = {
        "modifiers": ("a", "b", "c", "d"),
        "heads": ("x", "y"),
        "vectors": torch.tensor([[0.0], [1.0], [3.0], [7.0], [0.0], [20.0]]),
        "edges": torch.tensor([[0, 3, 1, 2, 1, 4], [4, 4, 5, 5, 5, 4]]),
        "counts": torch.tensor([1, 2, 4, 3, 5, 6]),
    }
    return WordGraph(**{**parts, **changes})


PRIOR = Prior(line_graph(), line_graph(counts=None))


def test_neighbors_before_and_after_the_graph():
    lines = describe_neighbors(PRIOR, ["a", "c"], nearest=2).splitlines()
    # Before: by distance from 0 and from 3. After: a moves with d, through x, and c with b, through y.
    assert lines[2:4] == ["  a: b, c | d, c", "  c: b, a | b, d"]
    assert lines[1].startswith("adjectives: spread ") and lines[4].startswith("nouns: spread")
    assert [line.split(":")[0].strip() for line in describe_neighbors(PRIOR, most=2).splitlines()[2:4]] == ["c", "d"]
    with pytest.raises(ValueError, match="in none of the lists: e, f"):
        describe_neighbors(PRIOR, ["a", "f", "e"])


def test_smoothing_is_two_rounds_of_the_graph():
    graph = line_graph()
    dense = torch.eye(6)
    for a, b in graph.edges.T.tolist():
        if a != b:
            dense[a, b] += 1
            dense[b, a] += 1
    scale = dense.sum(1).rsqrt()
    dense = scale[:, None] * dense * scale
    torch.testing.assert_close(smoothed(graph), dense @ dense @ graph.vectors)


def test_spread_says_when_words_become_alike():
    everything = torch.cartesian_prod(torch.arange(4), torch.arange(4, 6)).T.repeat(1, 50)
    alike = describe_neighbors(Prior(line_graph(edges=everything), line_graph()))
    assert "adjectives: spread 0% after" in alike
    apart = describe_neighbors(Prior(line_graph(edges=torch.empty(2, 0, dtype=torch.int64)), line_graph()))
    assert "adjectives: spread 100% after" in apart


def test_overlap():
    other = line_graph(modifiers=("c", "e", "b", "f"), counts=torch.tensor([9, 1, 1, 2, 1, 1]))
    lines = describe_overlap(PRIOR, Prior(other, line_graph())).splitlines()
    assert lines[:4] == [
        "adjectives: 2 in both, 50.0% of 4 and 50.0% of 4",
        "  only in the first: d, a",
        "  only in the second: f, e",
        "nouns: 2 in both, 100.0% of 2 and 100.0% of 2",
    ]
    # The first has ax dx by cy xx (by twice), the second cx fx ey by xx.
    assert lines[6] == "spatial pairs: 2 in both, of 5 and 5"


def test_partners_are_counted_once():
    assert partners(line_graph()).tolist() == [1, 1, 1, 1, 2, 2]


def built(count=30):
    captions = [[(f"a{i % 7}", "adjective"), (f"n{i}", "noun"), ("on", "adverb"), ("go", "verb")] for i in range(count)]
    captions += [[("n0", "noun"), ("n0", "noun"), ("n1", "noun")]]
    rules = Rules({"noun": 2}, {"adjective": 3}, max_weight=1)
    return build([pack(captions)], rules, 2), rules


def test_statistics():
    wording = statistics(*built())
    assert wording["captions"] == 31
    assert wording["lists"]["noun"] == {
        "words": 2,
        "distinct_in_captions": 30,
        "occurrences": 5,
        "share_of_occurrences": 5 / 33,
        "rarest_count": 2,
        "min_count": 2,
    }
    assert wording["lists"]["adjective"]["words"] == 3 and wording["lists"]["adjective"]["distinct_in_captions"] == 7
    assert wording["graphs"]["temporal"] == {
        "width": 2,
        "edges": 1,
        "pairs": 1,
        "words_without_partner": 0,
        "partners_median": 1.0,
        "partners_most": 1,
    }
    assert wording["graphs"]["spatial"]["words_without_partner"] == 1  # a2; a0 has n0 and a1 has n1
    assert wording["rules"] == {"most": {"adjective": 3}, "neighbors": None, "min_shared": 1, "max_weight": 1}
    json.dumps(wording)


def test_plot(tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason='not installed: pip install -e ".[plot]"')
    prior = built()[0].prior
    save_prior(prior, tmp_path / "prior")
    for _ in range(2):  # its own file is replaced
        assert main(["priors", "show", str(tmp_path / "prior"), "--plot", str(tmp_path / "plot.png")]) == 0
    assert matplotlib.image.imread(tmp_path / "plot.png").std() > 0.05
    with pytest.raises(ValueError, match="has no counts to plot"):
        plot(PRIOR, tmp_path / "other.png")


def test_origin_is_kept_in_the_file(tmp_path):
    save_prior(Prior(line_graph(origin="tagged by été"), line_graph()), tmp_path)
    prior = load_prior(tmp_path)
    assert prior.spatial.origin == "tagged by été" and prior.temporal.origin == ""
    assert "  tagged by été\n" in describe(prior)


def test_command_line(tmp_path, capsys):
    save_prior(PRIOR, tmp_path / "one")
    assert main(["priors", "show", str(tmp_path / "one"), "--words", "a", "--against", str(tmp_path / "one")]) == 0
    wording = capsys.readouterr().out
    assert re.search(r"^  a: b, c, d \| d, c, b$", wording, re.MULTILINE) and "100.0% of 4 and 100.0% of 4" in wording
    assert main(["priors", "show", str(tmp_path / "one"), "--words", "zebra"]) == 2
    assert "in none of the lists: zebra" in capsys.readouterr().err
