"""Captions from files, tagged and packed by several processes, counted in bounded memory, and gone on with."""

import csv
import gzip
import json
import sys
import types
from collections import Counter

import numpy as np
import pytest

from sweettok.cli.main import main
from sweettok.priors import cooccurrence
from sweettok.priors.build import Rules, build, build_prior
from sweettok.priors.captions import clean_word, piece_texts, read_pieces
from sweettok.priors.chunks import LOCK, load_chunk, pack, pack_files
from sweettok.priors.cooccurrence import count_words, shared_captions
from sweettok.priors.tagging import SpacyTagger, _pipeline
from sweettok.store import lock

PARTS = {
    "red": "adjective",
    "big": "adjective",
    "été": "adjective",
    "car": "noun",
    "dog": "noun",
    "fast": "adverb",
    "slowly": "adverb",
    "drives": "verb",
    "runs": "verb",
}
TEXTS = ["A red car drives fast", 'the "big", big dog\nruns slowly', "an ÉTÉ dog", "a car runs", "Red dog: slowly"]


class FakeTagger:
    """Knows the words above; gives up after `patience` captions, as a process that is killed."""

    name = "fake"

    def __init__(self, patience=1000):
        self.patience, self.seen = patience, []

    def tag(self, texts):
        for text in texts:
            self.patience -= 1
            if self.patience < 0:
                raise KeyboardInterrupt
            self.seen.append(text)
            words = text.lower().replace('"', "").replace(",", "").split()
            yield [(word, PARTS[word]) for word in words if word in PARTS]


def write(path, texts=TEXTS):
    """The captions in the format that the name asks for; a line cannot hold a line break, a cell and a record can."""
    with (gzip.open if path.name.endswith(".gz") else open)(path, "wt", encoding="utf-8") as file:
        if ".txt" in path.name:
            file.write("\n\n".join(text.replace("\n", " ") for text in texts) + "\n")
        elif ".jsonl" in path.name:
            file.writelines(json.dumps({"id": 1, "say": text}) + "\n" for text in texts)
        else:
            rows = csv.writer(file, delimiter="\t" if ".tsv" in path.name else ",")
            rows.writerows([["id", "say"], *([i, text] for i, text in enumerate(texts))])
    return path


def same(prior, other):
    for side in ("spatial", "temporal"):
        one, two = getattr(prior, side), getattr(other, side)
        assert one.words == two.words and one.counts.tolist() == two.counts.tolist()
        assert one.edges.tolist() == two.edges.tolist() and np.array_equal(one.vectors, two.vectors)


def rules(**changes):
    return Rules(**{"min_count": {}, "most": {}, **changes})


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.txt.gz", "a.CSV", "a.csv.gz", "a.jsonl.gz"])
def test_formats(tmp_path, name):
    path = write(tmp_path / name)
    pieces = list(read_pieces([path, path], "say", 2))
    texts = [text for piece in pieces for text in piece_texts(piece)]
    assert [text.replace("\n", " ") for text in texts] == [text.replace("\n", " ") for text in TEXTS] * 2
    assert sum(piece.size for piece in pieces) == 2 * path.stat().st_size  # for the progress bar
    assert all(len(piece.lines) <= 2 for piece in pieces)


def test_marks_and_line_ends_of_windows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa red car\r\n  \r\na dog\r\n".encode())
    (piece,) = read_pieces([path], "text", 9)
    assert piece_texts(piece) == ["a red car", "a dog"]


TAGGED = json.dumps({"words": [["car", "noun"]]})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"", r"a.parquet: expected a name in .txt, .csv"),
        ("a.csv", b"id,caption\n1,x\n", r"a.csv has no column 'say' but id, caption: give one of them as --column"),
        ("a.csv", b"id,say\n1,x,y\n", r"a.csv, table row near line 2: 3 cells, but the first row has 2"),
        ("a.csv", b"id,\xff\n", r"a.csv, line 1 is not UTF-8"),
        ("a.csv", b'id,say\n1,"\xff"\n', r"a.csv, table row near line .*'utf-8'"),
        ("a.txt", b"red car\n\xff\xfe\n", r"a.txt, line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n', r"a record has \"words\" or 'say', the first has text: --column"),
        ("a.jsonl", b'["say"]\n', r"a.jsonl, line 1: expected a JSON object, got list"),
        ("a.jsonl", b'{"say": "x"}\n{"say": 3}\n', r"a.jsonl, line 2: 'say' is not text: 3"),
        ("a.jsonl", b'{"say": "x"}\n{"say"\n', r"a.jsonl, line 2 is not a JSON record"),
        ("a.jsonl", f'{TAGGED}\n\n{{"say": "x"}}\n'.encode(), r"a.jsonl, line 3: not a tagged caption: expected"),
        (
            "a.jsonl",
            f'{TAGGED}\n{{"words": [["car", "NN"]]}}\n'.encode(),
            r"a.jsonl, line 2: not a tagged caption.*'NN'",
        ),
        ("a.jsonl", f'{TAGGED}\n{{"words": ["car"]}}\n'.encode(), r"a.jsonl, line 2: not a tagged caption"),
        ("a.jsonl", f'{TAGGED}\n{{"words": [[" ", "noun"]]}}\n'.encode(), r"a.jsonl, line 2: .*' ' is not a word"),
        ("a.jsonl", f'{TAGGED}\n{{"words": [["\\\\ud800", "noun"]]}}\n'.encode(), r"a.jsonl, line 2: .*surrogates"),
    ],
)
def test_broken_captions_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.replace(b"\\\\u", b"\\u"))
    with pytest.raises(ValueError, match=message):
        pack_files([path], tmp_path / "work", FakeTagger(), "say")


def test_plain_captions_need_a_tagger(tmp_path):
    with pytest.raises(ValueError, match="not tagged by part of speech, and no tagger"):
        pack_files([write(tmp_path / "a.txt")], tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_words_are_cleaned():
    assert clean_word("  E\u0301te\u0301 ", "noun") == ("été", "noun")  # composed and not: one word
    assert clean_word("Traffic \t LIGHT", "noun") == ("traffic light", "noun")
    chunk = pack([[("Red", "adjective"), ("red", "adjective"), ("red", "noun")], []])
    assert chunk.words == (("red", "adjective"), ("red", "noun"))
    assert chunk.ids.tolist() == [0, 0, 1] and chunk.lengths.tolist() == [3, 0]


# --------------------------------------------------------------------------------------------------- many, and again


def test_neither_processes_nor_chunks_nor_format_matter(tmp_path):
    tagged = tmp_path / "tagged.jsonl"
    words = list(FakeTagger().tag(TEXTS))
    tagged.write_text("".join(json.dumps({"key": "a", "words": caption}) + "\n" for caption in words))
    expected = build_prior(words, dim=4)
    assert "été" in expected.spatial.modifiers
    for number, (path, tagger, processes, size) in enumerate(
        [
            (write(tmp_path / "a.txt"), FakeTagger(), 2, 1),
            (write(tmp_path / "a.csv"), FakeTagger(), 1, 3),
            (tagged, None, 1, 20_000),
            (tagged, None, 1, 2),
        ]
    ):
        chunks = pack_files([path], tmp_path / f"work{number}", tagger, "say", processes, size)
        same(build(chunks, rules(), 4).prior, expected)


@pytest.mark.parametrize("patience", [0, 1, 3, 4])
def test_broken_off_work_goes_on(tmp_path, patience):
    paths = [write(tmp_path / "a.jsonl"), write(tmp_path / "b.csv", TEXTS[:3])]
    whole = build(pack_files(paths, tmp_path / "whole", FakeTagger(), "say", chunk_size=2), rules(), 4).prior
    with pytest.raises(KeyboardInterrupt):
        pack_files(paths, tmp_path / "work", FakeTagger(patience), "say", chunk_size=2)
    again = FakeTagger()
    chunks = pack_files(paths, tmp_path / "work", again, "say", chunk_size=2)
    assert again.seen == [*TEXTS, *TEXTS[:3]][patience - patience % 2 :]
    same(build(chunks, rules(), 4).prior, whole)


def test_work_of_other_captions_is_not_taken_for_ours(tmp_path):
    path = write(tmp_path / "a.txt")
    pack_files([path], tmp_path / "work", FakeTagger())
    other = FakeTagger()
    other.name = "other"
    with pytest.raises(ValueError, match="packed with other tagger, lines: give another work folder, or delete it"):
        pack_files([path], tmp_path / "work", other, chunk_size=3)
    write(path, TEXTS[1:])
    with pytest.raises(ValueError, match="packed with other files"):
        pack_files([path], tmp_path / "work", FakeTagger())


def test_a_broken_chunk_is_named_and_only_ours_is_removed(tmp_path):
    chunks = pack_files([write(tmp_path / "a.txt")], tmp_path / "work", FakeTagger())
    (path,) = (tmp_path / "work").glob("chunk-*")
    assert load_chunk(path).lengths.tolist() == [4, 5, 2, 2, 2]
    path.write_bytes(b"no chunk")
    with pytest.raises(ValueError, match="chunk-000000.safetensors is not a chunk of captions"):
        list(chunks)
    (tmp_path / "work" / "mine.txt").touch()
    chunks.remove()
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="no adjective is counted at least 1 times in the 0 captions"):
        build(pack_files([], tmp_path / "none"), rules(), 2)


# --------------------------------------------------------------------------------------------------------- counting


def test_counts():
    chunks = [pack([[("red", "adjective"), ("red", "adjective"), ("red", "noun")], []]), pack([[("red", "noun")]])]
    counts = count_words(chunks)
    assert counts.captions == 3 and counts.words == {("red", "adjective"): 2, ("red", "noun"): 2}


@pytest.mark.parametrize("batch", [1, 7, 10**6])
def test_shared_captions(monkeypatch, batch):
    monkeypatch.setattr(cooccurrence, "_BATCH", batch)
    rng = np.random.RandomState(1)
    words = [(f"w{i}", "noun") for i in range(6)]
    captions = [[words[i] for i in rng.randint(0, 6, rng.randint(0, 5))] for _ in range(40)]
    chunks = [pack(captions[:15]), pack([]), pack(captions[15:])]
    known = words[:5]  # w5 is not asked for
    held = np.array([[word in caption for word in known] for caption in captions]).astype(int)
    np.testing.assert_array_equal(shared_captions(chunks, known).toarray(), held.T @ held)


def test_edges_can_be_thinned():
    spoken = [("red", "car")] * 3 + [("red", "dog")] * 2 + [("big", "dog")]
    tail = [("on", "adverb"), ("go", "verb")]
    chunks = [pack([[(a, "adjective"), (b, "noun"), *tail] for a, b in spoken])]

    def pairs(**changes):
        graph = build(chunks, rules(**changes), 2).prior.spatial
        return Counter((graph.words[a], graph.words[b]) for a, b in graph.edges.T.tolist())

    assert pairs() == Counter(spoken)
    assert pairs(min_shared=2) == {("red", "car"): 3, ("red", "dog"): 2}
    assert pairs(max_weight=2) == {("red", "car"): 2, ("red", "dog"): 2, ("big", "dog"): 1}
    assert pairs(min_shared=9) == {}
    assert build(chunks, rules(most={"noun": 1}), 2).prior.spatial.words == ("red", "big", "car")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_shared": 0}, "min_shared must be at least 1, got 0"),
        ({"neighbors": 2, "max_weight": 3}, "max_weight would have no effect"),
        ({"most": {"noun": 0}}, "most takes numbers from 1 for adjective, noun, adverb, verb; got noun=0"),
        ({"min_count": {"nouns": 1}}, "got nouns=1"),
    ],
)
def test_rules_refuse_what_means_nothing(changes, message):
    with pytest.raises(ValueError, match=message):
        rules(**changes)


# ------------------------------------------------------------------------------------------------------------ spaCy


@pytest.fixture
def fake_spacy(monkeypatch):
    """A module that answers as spaCy does, and remembers how it was asked."""
    tags = {"red": "ADJ", "car": "NOUN", "cars": "NOUN", "is": "AUX", "drive": "VERB", "fast": "ADV", "4x4": "NOUN"}

    class Pipeline:
        meta = {"lang": "en", "name": "core", "version": "3.8.0"}
        inside = False

        def memory_zone(self):
            from contextlib import nullcontext

            return nullcontext()

        def pipe(self, texts, batch_size):
            for text in texts:
                yield [
                    types.SimpleNamespace(
                        text=word,
                        lemma_=word.rstrip("s"),
                        pos_=tags.get(word.lower(), self.other),
                        is_alpha=word.isalpha(),
                    )
                    for word in text.split()
                ]

    def load(model, exclude):
        if model != "en_core":
            raise OSError("E050")
        asked.append(exclude)
        return Pipeline()

    asked, Pipeline.other = [], "X"
    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    _pipeline.cache_clear()
    yield asked, Pipeline
    _pipeline.cache_clear()


def test_spacy_tags_are_read(fake_spacy):
    tagger = SpacyTagger("en_core")
    assert tagger.name == "spaCy en_core 3.8.0, words as written"
    words = [[("Red", "adjective"), ("cars", "noun"), ("drive", "verb"), ("fast", "adverb")], []]
    assert list(tagger.tag(["Red cars drive fast", "it is 4x4"])) == words
    lemmas = SpacyTagger("en_core", lemmatize=True)
    assert lemmas.name == "spaCy en_core 3.8.0, lemmas" and list(lemmas.tag(["cars"])) == [[("car", "noun")]]
    assert fake_spacy[0] == [["ner", "lemmatizer"], ["ner"]]


def test_a_missing_tagger_says_what_to_install(fake_spacy, monkeypatch):
    with pytest.raises(ValueError, match="no spaCy pipeline 'de': python -m spacy download de"):
        SpacyTagger("de").name  # noqa: B018
    fake_spacy[1].other = ""
    with pytest.raises(ValueError, match="the spaCy pipeline en_core assigns no parts of speech"):
        list(SpacyTagger("en_core").tag(["unknown words"]))
    _pipeline.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match=r"not installed: pip install \"sweettok\[tagging\]\".*tagged already"):
        SpacyTagger("en_core").name  # noqa: B018


def test_command_line_tags_and_says_so(fake_spacy, tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("red cars drive fast\nred car\n")
    out = tmp_path / "prior"
    arguments = ["priors", "build", "--captions", str(path), "--out", str(out), "--dim", "2", "--tagger", "en_core"]
    assert main([*arguments, "--lemmatize"]) == 0
    wording = capsys.readouterr().out
    assert "tagged by spaCy en_core 3.8.0, lemmas" in wording and "nouns: car\n" in wording
    assert sorted(p.name for p in out.iterdir()) == ["spatial.safetensors", "statistics.json", "temporal.safetensors"]
    work = tmp_path / "work"
    assert main([*arguments, "--work", str(work)]) == 0
    assert sorted(path.name for path in work.iterdir()) == [LOCK, "chunk-000000.safetensors", "plan.json"]
    assert "nouns: car, cars" in capsys.readouterr().out
    before = sorted(work.iterdir())
    with lock(work / LOCK):
        assert main([*arguments, "--work", str(work)]) == 1
    assert capsys.readouterr().err == f"error: {work} is in use: another process holds {LOCK} in it\n"
    assert sorted(work.iterdir()) == before


BROKEN = {
    "cut": lambda data: data[: len(data) // 2],
    "not gzip": lambda data: b"words " + data,
    "flipped": lambda data: data[:-6] + b"\xff\xff" + data[-4:],
}


@pytest.mark.parametrize("damage", BROKEN)
def test_compressed_captions_that_are_damaged(damage, tmp_path, capsys):
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"words": [[f"car{i}", "noun"]]}) + "\n" for i in range(3000))
    path.write_bytes(BROKEN[damage](gzip.compress(lines.encode())))
    assert main(["priors", "build", "--captions", str(path), "--out", str(tmp_path / "prior")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {path} is damaged or incomplete: ")


def test_outputs_replace_neither_captions_nor_other_files(tmp_path, capsys):
    captions = tmp_path / "captions.jsonl"
    captions.write_text(TAGGED + "\n")
    (tmp_path / "spatial.safetensors").write_bytes(b"weights")
    (tmp_path / "link").symlink_to(captions)
    for out, options, message in (
        (tmp_path, (), "spatial.safetensors exists and would be replaced"),
        (captions, (), "captions.jsonl is not a folder"),
        (tmp_path / "link", (), "link is not a folder"),
        (tmp_path / "out", ("--work", str(captions)), "captions.jsonl is not a folder"),
    ):
        assert main(["priors", "build", "--captions", str(captions), "--out", str(out), *options]) == 2
        assert message in capsys.readouterr().err
    assert captions.read_text() == TAGGED + "\n" and (tmp_path / "spatial.safetensors").read_bytes() == b"weights"


def test_real_spacy(tmp_path):
    """A pipeline of rules, because statistical ones must be downloaded."""
    spacy = pytest.importorskip("spacy", reason='spaCy is not installed: pip install -e ".[tagging]"')
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("attribute_ruler")
    for word, part, lemma in (("red", "ADJ", "red"), ("cars", "NOUN", "car"), ("drive", "VERB", "drive")):
        ruler.add([[{"LOWER": word}]], {"POS": part, "LEMMA": lemma})
    pipeline.to_disk(tmp_path / "rules")
    path = tmp_path / "a.txt"
    path.write_text("Red cars drive!\n" * 5)
    tagger = SpacyTagger(str(tmp_path / "rules"), lemmatize=True)
    for chunk in pack_files([path], tmp_path / "work", tagger, processes=2, chunk_size=2):
        assert chunk.words == (("red", "adjective"), ("car", "noun"), ("drive", "verb"))
