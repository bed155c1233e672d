"""Word vectors of a file, of CLIP and of a language model."""

import gzip
import json
import sys
import types

import numpy as np
import pytest
import torch

from sweettok.cli.main import main
from sweettok.priors import load_prior
from sweettok.priors.build import Rules, build
from sweettok.priors.chunks import pack
from sweettok.priors.vectors import CausalLMVectors, ClipVectors, TableVectors

WORDS = ["red", "traffic light", "été", "on"]


def table(tmp_path, content, name="vectors.txt"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return TableVectors(str(path))


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.vec.gz"])
@pytest.mark.parametrize(
    "content",
    [
        "5 2\nred 1 2\ntraffic_light 3 4\nété 5 6\nother 0 0\non 7 -8e-1\n",
        "red 1 2\ntraffic light 3 4\n\nété 5 6\non 7 -.8",
        "on\t7 -.8\nred\t1 2\r\ntraffic light\t3 4\r\ne\u0301te\u0301\t5 6\r\n",
        "Red 9 9\nRED 9 9\nred 1 2\nRed 9 9\nTraffic_Light 3 4\nÉTÉ 5 6\nOn 7 -.8\nON 9 9",
    ],
)
def test_table(tmp_path, name, content):
    found = table(tmp_path, content, name).vectors(WORDS)
    assert {word: vector.tolist() for word, vector in found.items()} == {
        "red": [1, 2],
        "traffic light": [3, 4],
        "été": [5, 6],
        "on": [7, pytest.approx(-0.8)],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("red 1 2\non 1\n", "line 2: .*expected a word and 2 numbers"),
        ("red\t1 2\non\t1 2 3\n", "line 2: .*3 numbers, expected 2 finite ones"),
        ("red 1 2\non 1 nan\n", "line 2: .*finite"),
        ("red 1 two\n", "line 1: .*two"),
        ("red\n", "line 1: .*expected a word and its numbers"),
    ],
)
def test_broken_tables_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"vectors.txt, {message}"):
        table(tmp_path, content).vectors(WORDS)


CAPTION = [("red", "adjective"), ("big", "adjective"), ("car", "noun"), ("fast", "adverb"), ("fast", "verb")]


def test_a_source_of_vectors_is_looked_up_by_spelling(tmp_path):
    source = table(tmp_path, "red 1 0\nbig 0 2\ncar 3 0\nfast 0 4\n")
    chunks = [pack([CAPTION])]
    built = build(chunks, Rules({}, {}), source, "tagged by hand")
    space, time = built.prior.spatial, built.prior.temporal
    assert space.words == ("big", "red", "car") and time.words == ("fast", "fast")
    rows = torch.tensor([[0, 2.0], [1, 0], [3, 0], [0, 4], [0, 4]])
    factor = 1 / rows.square().mean().sqrt()
    assert built.scale == pytest.approx(factor.item())
    torch.testing.assert_close(torch.cat([space.vectors, time.vectors]), rows * factor)
    assert space.origin == time.origin == "tagged by hand; vectors: table vectors.txt"
    assert space.edges.tolist() == [[0, 1], [2, 2]] and time.edges.tolist() == [[0], [1]]


def test_words_without_vector_are_refused_or_left_out(tmp_path):
    source = table(tmp_path, "red 1 0\ncar 3 0\nfast 0 4\n")
    with pytest.raises(ValueError, match=r"table vectors.txt has no vector for 1 of 4 words \(big\): --drop-unknown"):
        build([pack([CAPTION])], Rules({}, {}), source)
    built = build([pack([CAPTION])], Rules({}, {}, drop_unknown=True), source)
    assert built.prior.spatial.words == ("red", "car") and built.unknown == ("big",)
    assert built.prior.spatial.edges.tolist() == [[0], [1]]
    with pytest.raises(ValueError, match="table few.txt has no vector for any noun"):
        few = table(tmp_path, "red 1 0\nfast 0 4\n", "few.txt")
        build([pack([CAPTION])], Rules({}, {}, drop_unknown=True), few)


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"words": CAPTION}) + "\n")
    return path


def test_command_line_takes_a_table(captions, tmp_path, capsys):
    source = table(tmp_path, "red 1 0\nbig 0 2\ncar 3 0\nfast 0 4\n")
    out = tmp_path / "prior"
    arguments = ["priors", "build", "--captions", str(captions), "--out", str(out), "--vectors"]
    assert main([*arguments, source.path]) == 0
    assert "vectors: table vectors.txt" in capsys.readouterr().out
    assert load_prior(out).spatial.origin == "vectors: table vectors.txt"
    for options, message in (
        ([source.path, "--dim", "3"], "--dim has no effect with --vectors"),
        (["llm"], "--vectors llm needs --model"),
        (["captions", "--prompt", "x"], "--prompt has no effect with --vectors captions"),
        (["nowhere.txt"], "nowhere.txt is neither captions, clip, llm nor a file"),
        (["captions", "--min-count", "verbs=3"], "--min-count takes N or PART=N for adjective, noun, adverb, verb"),
    ):
        assert main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- CLIP

TINY_CLIP = {
    "embed_dim": 6,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_clip(tmp_path):
    """A model of open_clip with random weights, and the file of these."""
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "tiny-words.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-words").eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    return model, str(tmp_path / "tiny.pt"), open_clip.get_tokenizer("tiny-words")


def test_clip(tiny_clip):
    model, weights, tokenize = tiny_clip
    source = ClipVectors("tiny-words", weights, "a {} thing", batch_size=3)
    found = source.vectors(WORDS)
    assert source.name == "open_clip tiny-words tiny.pt, prompt 'a {} thing'"
    with torch.no_grad():
        expected = model.encode_text(tokenize([f"a {word} thing" for word in WORDS]))
    torch.testing.assert_close(torch.from_numpy(np.stack([found[word] for word in WORDS])), expected)
    assert len({vector.tobytes() for vector in found.values()}) == len(WORDS)


def test_clip_refuses_what_it_cannot_find(tiny_clip, captions, tmp_path, capsys):
    _, weights, _ = tiny_clip
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no weights")
    for source, message in (
        (ClipVectors("tiny-words", str(broken)), "broken.pt does not contain the weights of tiny-words: "),
        (ClipVectors("no-such", "openai"), "open_clip has no model 'no-such'"),
        (ClipVectors("tiny-words"), "None is neither a file nor weights of tiny-words"),
        (ClipVectors("ViT-B-32", "opnai"), "neither a file nor weights of ViT-B-32: openai"),
        (ClipVectors("hf-hub:a/b", weights), "hf-hub:a/b includes its weights"),
        (ClipVectors("tiny-words", weights, "no place"), "for the word, got 'no place'"),
    ):
        with pytest.raises(ValueError, match=message):
            source.vectors(WORDS)
    arguments = ["priors", "build", "--captions", str(captions), "--out", str(tmp_path / "out"), "--vectors", "clip"]
    options = ["--model", "tiny-words", "--weights", weights, "--prompt", "{}"]
    assert main([*arguments, *options]) == 0
    assert "vectors: open_clip tiny-words tiny.pt, prompt '{}'" in capsys.readouterr().out
    assert load_prior(tmp_path / "out").temporal.dim == 6


# ---------------------------------------------------------------------------------------------------- language model


def test_causal_lm_averages_the_rows_of_a_word(monkeypatch):
    table = torch.arange(20.0).reshape(10, 2).bfloat16()
    asked = []

    def tokenizer(texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[len(part) for part in text.split(" ")[1:]] for text in texts]}

    def from_pretrained(model, **options):
        asked.append(model)
        return types.SimpleNamespace(get_input_embeddings=lambda: types.SimpleNamespace(weight=table))

    fake = types.SimpleNamespace(
        AutoTokenizer=types.SimpleNamespace(from_pretrained=lambda model: tokenizer),
        AutoModelForCausalLM=types.SimpleNamespace(from_pretrained=from_pretrained),
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    source = CausalLMVectors("folder/Tiny")
    found = source.vectors(["red", "traffic light"])
    assert source.name == "input embedding of Tiny, prompt ' {}'" and asked == ["folder/Tiny"]
    assert found["red"].tolist() == [6, 7] and found["red"].dtype == np.float32
    assert found["traffic light"].tolist() == [12, 13]  # mean of rows 7 and 5
    with pytest.raises(ValueError, match="the tokenizer of x finds no token in 'red'"):
        CausalLMVectors("x", "{}").vectors(["red"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r'pip install "sweettok\[llm\]"'):
        source.vectors(["red"])


def test_real_causal_lm(tmp_path):
    """A language model with random weights, and a tokenizer that knows some words whole."""
    transformers = pytest.importorskip("transformers", reason='not installed: pip install -e ".[llm]"')
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "red": 1, "traffic": 2, "light": 3, "on": 4, "[BOS]": 5}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing("[BOS] $A", special_tokens=[("[BOS]", 5)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    config = transformers.LlamaConfig(
        vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    found = CausalLMVectors(str(tmp_path)).vectors(["red", "traffic light"])
    rows = model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(torch.from_numpy(found["red"]), rows[1])
    torch.testing.assert_close(torch.from_numpy(found["traffic light"]), rows[2:4].mean(0))
