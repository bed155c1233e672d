"""Probes: known accuracies of made-up features, nothing chosen on test clips, and the command on a tiny tokenizer."""

import json
import shutil

import pytest
import tiny
import torch

from sweettok.cli.main import main
from sweettok.data.episodes import EpisodeConfig, draw
from sweettok.data.lists import load_clips
from sweettok.data.synonyms import ATTRIBUTES, read_attribute
from sweettok.data.synthetic import CLASSES, indexed_scene
from sweettok.data.synthetic_files import write_synthetic
from sweettok.eval import probes
from sweettok.tokenizer.histograms import histograms, word_counts

N, M, WIDTH, CHANCE = 80, 120, 24, 1 / 4  # training and test clips, words, and chance of 4 classes
LABELS, TRUTH = torch.arange(N) % 4, torch.arange(M) % 4
ROWS = [(str(row), "abcd"[row % 4]) for row in range(M)]
EPISODES = draw(ROWS, EpisodeConfig(4, 5, 4, 50), ROWS[:N])


def words(labels: torch.Tensor, informative: bool, seed: int) -> torch.Tensor:
    """Histograms (N, WIDTH) of 50 random words, of those of the class alone if `informative`."""
    allowed = (torch.arange(WIDTH) % 4 == labels[:, None]) | (not informative)
    drawn = torch.multinomial(allowed.float(), 50, replacement=True, generator=torch.Generator().manual_seed(seed))
    return (word_counts(drawn, WIDTH) / 50).sqrt()


def classify(informative: bool) -> dict:
    train, test = words(LABELS, informative, 0), words(TRUTH, informative, 1)
    return probes.classify({"verb": train}, {"verb": test}, LABELS, TRUTH, EPISODES)["verb"]


def test_words_that_determine_the_class():
    result = classify(informative=True)
    assert result["width"] == WIDTH and result["linear"]["training_folds"] == 1
    for name in ("nearest_mean", "linear", "few_shot"):
        assert result[name]["accuracy"] == 1, name


def test_words_that_do_not_depend_on_the_class():
    result = classify(informative=False)
    for name in ("nearest_mean", "linear", "few_shot"):
        low, high = result[name]["interval95"]
        assert low < CHANCE < high, name


def test_few_shot_intervals_end_at_one():
    """Few of twenty episodes with one query are wrong."""
    episodes = draw([(str(row), "ab"[row % 2]) for row in range(40)], EpisodeConfig(2, 1, 1, 20))
    train, asked = torch.eye(2)[torch.arange(40) % 2], int(episodes[0].queries[0][0])
    test = train.clone()
    test[asked] = 1 - test[asked]
    found = probes.few_shot(train, test, episodes)
    assert 0.8 < found["interval95"][0] < found["accuracy"] < 1 and found["interval95"][1] <= 1


def test_words_that_never_change():
    same = torch.ones(N, WIDTH) / WIDTH**0.5
    assert probes.linear(same, LABELS, same[:M], LABELS)["accuracy"] == CHANCE


def test_intervals():
    """Wilson's interval of 8 of 10."""
    found = probes.accuracy(torch.arange(10), torch.arange(10) * (torch.arange(10) < 8))
    assert (found["accuracy"], found["right"]) == (0.8, 8)
    assert found["interval95"] == pytest.approx([0.4902, 0.9433], abs=1e-4)


def test_ridge_regression_is_the_closed_form():
    train, test = torch.randn(N, 30, generator=torch.Generator().manual_seed(0)).double(), torch.eye(30).double()
    predicted = probes.ridge(train, LABELS, test, 4)
    targets, centred = torch.eye(4).double()[LABELS], train - train.mean(0)
    for penalty, classes in zip(probes.PENALTIES, predicted, strict=True):
        gram = centred.T @ centred + penalty * centred.square().sum() * torch.eye(30)
        weights = torch.linalg.solve(gram, centred.T @ (targets - targets.mean(0)))
        assert torch.equal(classes, ((test - train.mean(0)) @ weights + targets.mean(0)).argmax(1))


def test_the_penalty_is_chosen_on_training_clips():
    """A weak signal in many random features needs a large penalty; other test clips change neither it nor the rest."""
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(count, 200, generator=generator) for count in (N, M))
    train[:, :4] += 2 * torch.eye(4)[LABELS]
    test[:, :4] += 2 * torch.eye(4)[TRUTH]
    found = probes.linear(train, LABELS, test, TRUTH)
    assert found["penalty"] > probes.PENALTIES[1] and 0.4 < found["training_folds"] < 1 and found["accuracy"] > 0.4
    for other, truth in ((test, (TRUTH + 1) % 4), (100 * test[:7], TRUTH[:7])):
        again = probes.linear(train, LABELS, other, truth)
        assert [again[name] for name in ("penalty", "training_folds")] == [found["penalty"], found["training_folds"]]
    assert torch.equal(probes.ridge(train, LABELS, test, 4)[:, :5], probes.ridge(train, LABELS, test[:5], 4))
    assert torch.allclose(probes.principal(train, test, 3)[1][:5], probes.principal(train, test[:5], 3)[1], atol=1e-5)


def test_principal_components():
    """Three components keep all distances of points in three dimensions."""
    generator = torch.Generator().manual_seed(0)
    points = (torch.randn(N, 3, generator=generator) @ torch.randn(3, 50, generator=generator)).double()
    train, test = probes.principal(points + 5, points[:4] + 5, 3)
    assert train.shape == (N, 3)
    torch.testing.assert_close(torch.cdist(train, test), torch.cdist(points, points[:4]), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ of a tokenizer


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    write_synthetic(folder / "clips", num_train=32, num_val=24, frames=9, size=16)
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.proxy().save_pretrained(folder / "proxy")
    return folder


def run(work, *more: str, data: str = "val.txt") -> int:
    given = ["--checkpoint", str(work / "model"), "--data", str(work / "clips" / data), *more]
    return main(["eval", "probe", "--train", str(work / "clips" / "train.txt"), *given])


def test_command(work, tmp_path, capsys):
    out = tmp_path / "probe.json"
    sizes = ["--n-way", "5", "--k-shot", "2", "--num", "9"]
    assert run(work, "--proxy", str(work / "proxy"), *sizes, "--out", str(out)) == 0
    report, text = json.loads(out.read_text()), capsys.readouterr().out
    assert "label: 8 classes, 24 test and 32 training clips; chance 12.5%" in text
    assert "9 episodes, 5-way 2-shot; chance 20.0%" in text
    histograms = {*probes.HISTOGRAMS, "proxy codes"}
    assert report["results"].keys() == {*histograms, "spatial features", "temporal features", "pixels"}
    for name, found in report["results"].items():
        counted = {"nearest_mean", "few_shot"} if name in histograms else set()
        assert found.keys() == {"width", "linear", *counted} and name in text
        assert found["linear"]["clips"] == 24 and 0 <= found["linear"]["accuracy"] <= 1
    widths = {name: found["width"] for name, found in report["results"].items()}
    assert (widths["adverb"], widths["all words"], widths["proxy codes"]) == (7, 48, 32)
    assert widths["pixels"] == widths["spatial features"] == widths["temporal features"] == 32
    assert report["tokenizer_hash"] == tiny.tokenizer().ids_hash() and set(report["classes"].values()) == {3}
    assert report["clips"]["test"]["sha256"] == load_clips(work / "clips/val.txt").hash
    first = out.read_bytes()
    assert run(work, "--proxy", str(work / "proxy"), *sizes, "--out", str(out)) == 0 and out.read_bytes() == first
    (tmp_path / "other.json").write_text('{"kind": "rfvd"}')
    assert run(work, "--out", str(tmp_path / "other.json")) == 2


def test_words_and_features_are_those_of_the_tokenizer(work):
    clips = load_clips(work / "clips/val.txt").subset(range(5))
    for config in (tiny.tokenizer_config(), tiny.union_config(), tiny.tokenizer_config(compression="flat_queries")):
        model = tiny.tokenizer(config)
        found = probes.encode_clips(model, None, clips, batch_size=2)
        paths = list(clips.paths)
        counts = word_counts(model.encode(paths).ids, model.vocab_size)
        assert torch.equal(found["motion words"], histograms(counts, model.layout, ("adverb", "verb")))
        temporal = model.features(paths).temporal
        pooled = torch.cat((temporal.mean(1), temporal.std(1, correction=0)), 1)
        assert torch.allclose(found["temporal features"], pooled, atol=1e-5)


def test_attributes_of_synthetic_clips(work, capsys):
    path = work / "clips/captions.jsonl"
    for index, key in enumerate(read_attribute(path, "color")):
        scene = indexed_scene(index, seed=0)[1]
        for attribute in ATTRIBUTES:
            assert read_attribute(path, attribute)[key] == getattr(scene, attribute)
    assert run(work, "--attribute", "size", "--n-way", "3", "--k-shot", "2", "--num", "3") == 0
    assert "size: 3 classes" in capsys.readouterr().out


def test_what_is_refused(work, capsys):
    clips = work / "clips"
    lines = (clips / "val.txt").read_text()
    shutil.copy(clips / f"videos/{CLASSES[0]}/train_00000.mp4", clips / "copy.mp4")
    cases = {
        "shared": (f"{lines}copy.mp4\t1\n", "1 test clips are also training clips: use held-out clips: .*copy.mp4"),
        "unknown": (lines.replace("\t8\n", "\t9\n"), "1 classes of test clips have no training clips: 9"),
        "bare": ("".join(f"{line.split()[0]}\n" for line in lines.splitlines()), "bare.txt has no labels"),
        "few": (
            "\n".join(lines.splitlines()[:3]),
            "5 classes of at least 5 and 1 clips (examples and queries), there are 0 (clips of each class: 1 4 and 1",
        ),
    }
    for name, (text, message) in cases.items():
        (clips / f"{name}.txt").write_text(text)
        assert run(work, data=f"{name}.txt") == 2
        captured = capsys.readouterr().err
        assert message.split(": .*")[0] in captured and message.split(".*")[-1] in captured, captured
    assert run(work, "--attribute", "size", data="shared.txt") == 2
    assert "does not give the size of 1 clips" in capsys.readouterr().err
    tiny.proxy(tiny.proxy_config(num_frames=5)).save_pretrained(work / "short")
    assert run(work, "--proxy", str(work / "short")) == 2
    assert "the proxy takes clips of (frames, height, width) (5, 16, 16)" in capsys.readouterr().err
