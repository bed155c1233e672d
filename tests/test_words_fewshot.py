"""Few-shot tasks: how episodes are drawn, the text of prompts, and the histograms."""

import json

import pytest
import tiny
import torch
import word_shards

from sweettok.cli.main import main
from sweettok.data import episodes
from sweettok.data.episodes import Episode, EpisodeConfig
from sweettok.data.tokens import TokenDataset
from sweettok.tokenizer import histograms
from sweettok.words import prompts, summary
from sweettok.words.fewshot import difference, score
from sweettok.words.prompts import PromptConfig

LABELLED = [(f"{name}{i}", name) for i in range(6) for name in ("d", "a", "c", "b", "e")]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fewshot")
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    word_shards.write_shards(folder / "tokens")
    return folder


def run(work, out, *more) -> int:
    given = ["--tokens", str(work / "tokens"), "--checkpoint", str(work / "tokenizer"), "--out", str(out), *more]
    return main(["words", "fewshot", *given])


# ---------------------------------------------------------------------------------------------------------- episodes


@pytest.mark.parametrize("queries", [1, 3, 7])
def test_episodes_have_the_sizes_asked_for(queries):
    drawn = episodes.draw(LABELLED, EpisodeConfig(n_way=3, k_shot=2, queries=queries, num=40))
    name_of = dict(LABELLED)
    for episode in drawn:
        assert len(set(episode.classes)) == 3 and len(episode.queries) == queries
        assert len(set(episode.keys)) == len(episode.keys) == 6 + queries
        for name, keys in zip(episode.classes, episode.support, strict=True):
            assert len(keys) == 2 and {name_of[key] for key in keys} == {name}
        assert all(name_of[key] == episode.classes[place] for key, place in episode.queries)
        asked = [place for _, place in episode.queries]
        assert max(map(asked.count, range(3))) - min(map(asked.count, range(3))) <= 1
    assert {episode.queries[0][1] for episode in drawn} == {0, 1, 2}  # the first class is not always asked first
    assert {name for episode in drawn for name in episode.classes} == set("abcde")


def test_episodes_depend_on_the_seed_and_their_number_alone():
    few, many = (episodes.draw(LABELLED, EpisodeConfig(num=num)) for num in (3, 9))
    assert many[:3] == few and len(set(many)) == 9
    assert episodes.draw(LABELLED, EpisodeConfig(num=3, seed=1)) != few


def test_classes_with_too_few_clips_are_left_out():
    labelled = [pair for pair in LABELLED if pair[0] not in ("a4", "a5")]  # four of a
    drawn = episodes.draw(labelled, EpisodeConfig(n_way=4, k_shot=4, queries=4, num=5))
    assert {name for episode in drawn for name in episode.classes} == set("bcde")
    with pytest.raises(ValueError, match="need 5 classes of at least 5 clips, there are 4 .*a 4, b 6"):
        episodes.draw(labelled, EpisodeConfig(n_way=5, k_shot=4, queries=4))


def test_examples_of_other_clips():
    """Examples are of the other clips only, and of a class that has enough of both."""
    others = [(f"other {key}", name) for key, name in LABELLED if key not in ("b4", "b5")]
    config = EpisodeConfig(n_way=3, k_shot=5, queries=6, num=20)
    drawn = episodes.draw([pair for pair in LABELLED if pair[0][1] in "01"], config, others)
    assert {name for episode in drawn for name in episode.classes} == set("acde")
    for episode in drawn:
        for name, keys in zip(episode.classes, episode.support, strict=True):
            assert len(set(keys)) == 5 and all(key.startswith(f"other {name}") for key in keys)
        assert len({key for key, _ in episode.queries}) == 6
        assert all(
            key in (f"{episode.classes[place]}0", f"{episode.classes[place]}1") for key, place in episode.queries
        )
    with pytest.raises(ValueError, match="at least 5 and 3 clips .*there are 0 .*a 6 and 2, b 4 and 2"):
        episodes.draw(LABELLED[:10], EpisodeConfig(n_way=3, k_shot=5, queries=7), others)


@pytest.mark.parametrize("size", [{"n_way": 1}, {"k_shot": 0}, {"queries": 0}, {"num": 0}])
def test_sizes_are_checked(size):
    with pytest.raises(ValueError, match="must be at least"):
        EpisodeConfig(**size)


def test_files_of_episodes_are_read_back_and_not_replaced_by_others(tmp_path):
    config = EpisodeConfig(num=4)
    drawn = episodes.draw(LABELLED, config)
    path = tmp_path / "new" / "episodes.json"
    episodes.write(path, drawn, config)
    assert episodes.read(path) == (drawn, config)
    episodes.write(path, drawn, config)
    with pytest.raises(ValueError, match="holds other episodes"):
        episodes.write(path, drawn[1:], config)
    path.write_text('{"format": 1}')
    with pytest.raises(ValueError, match="is not a file of episodes"):
        episodes.read(path)


def test_other_labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("a\tround\nb\tflat thing\n")
    assert episodes.read_labels(path, ["c", "b", "a"]) == [("a", "round"), ("b", "flat thing")]
    for text, message in (
        ("a round\n", "line 1: expected 'key TAB class name'"),
        ("z\tx\n", "1 clips are not among"),
        ("a\tx\na\ty\n", "1 clips have several labels"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            episodes.read_labels(path, ["a", "b"])


def test_a_list_of_videos_gives_the_episodes_of_its_tokens(work, tmp_path):
    keys = TokenDataset(work / "tokens").keys
    for key in keys:
        (tmp_path / f"{key}.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / f"{key}.mp4").touch()
    lines = [f"{key}.mp4\t{i % len(word_shards.CLASSES) + 1}\n" for i, key in enumerate(keys)]
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "classes.txt").write_text("\n".join(word_shards.CLASSES))
    given = ["--data", str(tmp_path / "list.txt"), "--classes", str(tmp_path / "classes.txt"), "--num", "3"]
    assert main(["words", "episodes", *given, "--out", str(tmp_path / "a.json")]) == 0
    assert (
        main(["words", "episodes", "--tokens", str(work / "tokens"), "--num", "3", "--out", str(tmp_path / "b.json")])
        == 0
    )
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


# ----------------------------------------------------------------------------------------------------------- prompts

EPISODE = Episode(("rise", "fall"), (("r0", "r1"), ("f0", "f1")), (("q", 1),))
WORDS = {key: {"noun": [key, "sky"], "verb": [], "adverb": ["slowly"]} for key in ("r0", "r1", "f0", "f1", "q")}


def test_the_text_of_a_prompt():
    one = Episode(("rise", "fall"), (("r0",), ("f0",)), (("q", 1),))
    assert prompts.build(one, "q", WORDS.get, PromptConfig()) == (
        "Name each clip from the words that describe it. Answer with exactly one of: fall, rise.\n\n"
        "Input: <nouns: r0, sky; adverbs: slowly>\nOutput: rise\n\n"
        "Input: <nouns: f0, sky; adverbs: slowly>\nOutput: fall\n\n"
        "Input: <nouns: q, sky; adverbs: slowly>\nOutput:"
    )


def test_instruction_repeats_and_order_of_a_prompt():
    def shown(**how):
        text = prompts.build(EPISODE, "q", WORDS.get, PromptConfig(**how), number=how.pop("number", 0))
        return [part.split("nouns: ")[1].split(",")[0] for part in text.split("\n\n") if part.startswith("Input")]

    assert shown() == ["r0", "f0", "r1", "f1", "q"]
    assert shown(order="grouped") == ["r0", "r1", "f0", "f1", "q"]
    assert shown(order="grouped", repeats=1) == ["r0", "r1", "f0", "f1", "r0", "r1", "f0", "f1", "q"]
    assert "Answer" not in prompts.build(EPISODE, "q", WORDS.get, PromptConfig(instruction=False))
    how = PromptConfig(order="shuffled")
    drawn = [tuple(prompts.examples(EPISODE, how, number)) for number in range(20)]
    assert len(set(drawn)) > 5 and {frozenset(one) for one in drawn} == {frozenset(drawn[0])}
    assert drawn == [tuple(prompts.examples(EPISODE, how, number)) for number in range(20)]


@pytest.mark.parametrize(
    "wrong", [{"words": 0}, {"repeats": -1}, {"order": "none"}, {"kinds": ()}, {"kinds": ("noun", "noun")}]
)
def test_prompt_settings_are_checked(wrong):
    with pytest.raises(ValueError):
        PromptConfig(**wrong)


# --------------------------------------------------------------------------------------------------------- baselines


def test_histograms_compare_shares_of_each_kind():
    layout = tiny.tokenizer().layout
    counts = histograms.word_counts(word_shards.random_ids(layout, 3), layout.vocab_size)
    features = histograms.histograms(counts, layout, ("noun", "verb"))
    assert torch.allclose(features.square().sum(1), torch.ones(3))  # a clip is equal to itself
    nouns = layout.kind_ranges["noun"]
    shares = counts[:, nouns.start : nouns.stop] / layout.segment("noun").length
    expected = (shares[0] * shares[1]).sqrt().sum()
    assert torch.allclose(2 * features[0, : len(nouns)] @ features[1, : len(nouns)], expected)
    assert torch.allclose(features, histograms.histograms(3 * counts, layout, ("noun", "verb")))


def test_mean_vectors_are_those_of_the_words():
    model = tiny.tokenizer()
    layout, codes = model.layout, model.embedding_matrix().vectors
    ids = word_shards.random_ids(layout, 2)
    features = histograms.mean_vectors(histograms.word_counts(ids, layout.vocab_size), layout, ("noun", "verb"), codes)
    means = [codes[ids[:, layout.segment(name).places]].mean(1) for name in ("noun", "verb")]
    assert torch.allclose(features, torch.cat(means, dim=1), atol=1e-6)
    tables = [*model.spatial_quantizer.tables(), *model.temporal_quantizer.tables()]
    assert torch.equal(codes, torch.cat(tables).detach())


def test_listed_words_lose_their_counts():
    layout = tiny.tokenizer().layout
    counts = torch.zeros(2, layout.vocab_size)
    nouns = layout.kind_ranges["noun"].start
    counts[0, nouns : nouns + 3] = torch.tensor([9.0, 5.0, 1.0])
    counts[1, nouns : nouns + 3] = torch.tensor([2.0, 3.0, 1.0])
    features = histograms.histograms(summary.frequent_only(counts, layout, 2) > 0, layout, ("noun",))
    assert torch.equal(features[0], features[1]) and features[0].count_nonzero() == 2


def test_nearest_class():
    support = torch.tensor([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    queries = torch.tensor([[1.0, 0.9], [0.0, 1.0]])
    assert histograms.nearest_by_product(queries, support).tolist() == [0, 1]
    assert histograms.nearest_by_distance(torch.tensor([[0.9, 0.9], [1.9, 0.1]]), support).tolist() == [1, 0]


# ------------------------------------------------------------------------------------------------------- the command


def test_score_and_difference():
    asked = Episode(("rise", "fall"), (("r0",), ("f0",)), (("x", 0), ("y", 1)))
    result = score([asked, asked], [["rise", "rise"], ["rise", None]])
    assert result["accuracy"] == 0.5 and result["half_interval"] == 0 and result["without_class"] == 1
    assert result["classes"]["rise"] == {"queries": 2, "accuracy": 1.0, "predicted": {"rise": 2}}
    assert result["classes"]["fall"] == {"queries": 2, "accuracy": 0.0, "predicted": {"rise": 1, "(none)": 1}}
    assert score([asked], [["rise", "fall"]])["half_interval"] is None
    apart = difference(*({"episode_accuracies": values} for values in ([1.0, 0.5, 0.5, 1.0], [0.5] * 4)))
    assert apart["accuracy"] == 0.25 and apart["half_interval"] == pytest.approx(1.96 * 0.288675 / 2, abs=1e-5)


def report_of(out):
    return json.loads((out / "report.json").read_text())


def test_baselines_find_classes_with_distinct_words(work, tmp_path, capsys):
    assert run(work, tmp_path / "nouns", "--kinds", "noun", "--num", "20") == 0
    report, printed = report_of(tmp_path / "nouns"), capsys.readouterr().out
    accuracies = {name: result["accuracy"] for name, result in report["results"].items()}
    assert accuracies["histogram"] == accuracies["listed"] == 1.0 and accuracies["vectors"] > 0.7
    assert report["model"] is None and report["chance"] == 0.2
    assert "20 episodes, 5-way 1-shot, 5 queries each; chance 20.0%" in printed
    assert "  histogram  100.0 +- 0.0" in printed
    assert run(work, tmp_path / "verbs", "--kinds", "verb", "--num", "20") == 0
    others = report_of(tmp_path / "verbs")
    assert others["episodes_hash"] == report["episodes_hash"]
    assert max(result["accuracy"] for result in others["results"].values()) < 0.5  # random words


def test_of_several_views_the_first_is_used(work, tmp_path):
    word_shards.write_shards(tmp_path / "tokens", views=2)
    given = ["--tokens", str(tmp_path / "tokens"), "--checkpoint", str(work / "tokenizer"), "--kinds", "noun"]
    assert main(["words", "fewshot", *given, "--num", "10", "--out", str(tmp_path / "out")]) == 0
    assert report_of(tmp_path / "out")["results"]["histogram"]["accuracy"] == 1.0


def test_episodes_are_shared_between_runs(work, tmp_path, capsys):
    path = tmp_path / "episodes.json"
    given = ["--tokens", str(work / "tokens"), "--n-way", "3", "--k-shot", "2", "--num", "4", "--seed", "7"]
    assert main(["words", "episodes", *given, "--out", str(path)]) == 0
    assert run(work, tmp_path / "a", "--use", str(path)) == 0
    assert (tmp_path / "a" / "episodes.json").read_text() == path.read_text()
    assert report_of(tmp_path / "a")["episodes"] == {"n_way": 3, "k_shot": 2, "queries": 5, "num": 4, "seed": 7}
    assert run(work, tmp_path / "a", "--seed", "8") == 2
    assert "holds other episodes" in capsys.readouterr().err
    assert run(work, tmp_path / "b", "--use", str(path), "--n-way", "2") == 2
    assert "cannot be combined with --n-way" in capsys.readouterr().err
    path.write_text(path.read_text().replace("videos/delta_00", "videos/delta_99"))
    assert run(work, tmp_path / "b", "--use", str(path)) == 2
    assert "1 clips are not among the 30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "x"), "--model cannot be used with --backend none"),
        (("--backend", "local", "--model", "x", "--retries", "1"), "--retries cannot be used with --backend local"),
        (("--backend", "local", "--model", "x", "--answers", "schema"), "must be likelihood or free"),
        (("--backend", "endpoint", "--model", "x"), "--backend endpoint needs --base-url"),
        (("--backend", "endpoint", "--model", "x", "--base-url", "localhost"), "must begin with http"),
        (("--backend", "endpoint", "--model", "x", "--base-url", "http://a", "--body", "[]"), "expected a JSON object"),
        (("--words", "0"), "argument --words: expected a whole number of at least 1"),
        (("--n-way", "6"), "need 6 classes"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(work, tmp_path, more, message, capsys):
    assert run(work, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
