"""Bad input to VTok: one clear line each, before work starts. More is in the tests of each part."""

import json
import shutil
import sys

import pytest
import test_vtok
import tiny_language
import torch
from safetensors.torch import save_file

from sweettok import SweetTok, VideoLanguageModel, VTok
from sweettok.cli.main import main
from sweettok.eval.judges import LocalJudge
from sweettok.vtok.cache import FeatureDataset, cache_features
from sweettok.vtok.hunyuan import HunyuanDecoder
from sweettok.vtok.language_config import LanguageConfig, LoraConfig

CLIP = test_vtok.clips(1, 9)
TOKENS = tiny_language.tokens(1)


@pytest.fixture(scope="module")
def tok():
    return test_vtok.make()


@pytest.fixture(scope="module")
def model():
    return tiny_language.language_model()


@pytest.fixture(scope="module")
def folder(tok, model, tmp_path_factory):
    """Saved models "tok" and "language", language models of transformers that lack something, and other files."""
    path = tmp_path_factory.mktemp("files")
    tok.save_pretrained(path / "tok")
    model.save_pretrained(path / "language")
    for name, change in (("narrow", {"block": -1, "grid": [3, 3], "colour": 1}), ("wide", {"visual_dim": 13})):
        shutil.copytree(path / ("tok" if name == "narrow" else "language"), path / name)
        about = json.loads((path / name / "config.json").read_text())
        about["config"].update(change)
        (path / name / "config.json").write_text(json.dumps(about))
    save_file({"weight": torch.zeros(2)}, path / "other.safetensors")
    save_file({"visual.conv1.weight": torch.zeros(2)}, path / "part.safetensors")
    (path / "empty").mkdir()
    bare = tiny_language.text_model("llama", 280)
    bare.save_pretrained(path / "no-tokenizer")
    bare.config.save_pretrained(path / "no-weights")
    model.tokenizer.save_pretrained(path / "no-weights")
    return path


def base(folder, name):
    return VideoLanguageModel.from_base(LanguageConfig(base=str(folder / name)))


def store(tok, folder, keys=("a",), videos=(CLIP,), out="features", **options):
    return cache_features(tok, keys, videos, folder / out, fps=6, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, m, f: VTok.from_pretrained(f / "none"), "there is no folder .*none: give one"),
        (lambda t, m, f: VTok.from_pretrained(f / "language"), "holds 'VideoLanguageModel', expected 'VTok'"),
        (lambda t, m, f: SweetTok.from_pretrained(f / "tok"), "holds 'VTok', expected 'SweetTok'"),
        (lambda t, m, f: VTok.from_pretrained(f / "narrow"), "do not fit together: .* 'colour'"),
        (lambda t, m, f: VideoLanguageModel.from_pretrained(f / "wide"), "do not fit together: .* size mismatch"),
        (lambda t, m, f: test_vtok.make(pretrained=str(f / "other.safetensors")), "holds no image encoder"),
        (lambda t, m, f: test_vtok.make(pretrained=str(f / "part.safetensors")), "does not fit vtok.architecture"),
        (lambda t, m, f: test_vtok.make(grid=4), "two whole numbers, rows and columns; got 4"),
        (lambda t, m, f: test_vtok.make(grid=(9, 8)), "vtok.grid 9x8 is finer than the encoder's features, 8x8"),
        (lambda t, m, f: test_vtok.make(projection="patch_mlp", motion_grid=(9, 9)), "vtok.motion_grid 9x9 is finer"),
        (lambda t, m, f: base(f, "none"), "there is no language model"),
        (lambda t, m, f: base(f, "empty"), "holds no config.json"),
        (lambda t, m, f: base(f, "tok"), "is no model of transformers"),
        (lambda t, m, f: base(f, "no-tokenizer"), "safetensors weights and a tokenizer"),
        (lambda t, m, f: base(f, "no-weights"), "no file named model.safetensors"),
        (lambda t, m, f: VideoLanguageModel.from_scratch(tiny_language.config(), "text"), "texts must be the captions"),
        (lambda t, m, f: tiny_language.language_model(state_layer=-5), "must be from -4, .* to -1; got -5"),
        (lambda t, m, f: m.answer(t.encode(CLIP, 6), "what?"), "have 12 channels; got 16"),
        (lambda t, m, f: m.answer(TOKENS, " "), "expected a question"),
        (lambda t, m, f: m.answer(TOKENS, []), "expected a question"),
        (lambda t, m, f: m.answer(TOKENS, "what?", ["a", "a "]), "different answers"),
        (lambda t, m, f: m.answer(TOKENS, "what?", [1, 2]), "different answers"),
        (lambda t, m, f: m.generate(None, 1.0), "at least one caption"),
        (lambda t, m, f: m.generate("ball", 100.0), "604 visual tokens and 3 of text do not fit .* 96 positions"),
        (lambda t, m, f: m.sequences.collate([tiny_language.item(question="a")]), "a question and its answer"),
        (lambda t, m, f: store(t, f, dtype="bfloat16"), "dtype must be one of float32, float16; got 'bfloat16'"),
        (lambda t, m, f: store(t, f, workers=0), "workers must be a whole number of at least 1"),
        (lambda t, m, f: store(t, f, rows_per_shard=0), "rows_per_shard must be a whole number of at least 1"),
        (lambda t, m, f: store(t, f, ("a", "a"), [CLIP] * 2), "keys must differ; 'a'"),
        (lambda t, m, f: store(t, f, ("a", "b"), [CLIP, "none.mp4"]), "1 of 1 videos are missing, .* none.mp4"),
        (lambda t, m, f: store(t, f, out="tok"), "the folder of a saved model"),
        (lambda t, m, f: store(t, f, out="other.safetensors"), "is not a folder"),
        (lambda t, m, f: FeatureDataset(f / "empty"), "expected a folder of features"),
    ],
)
def test_calls(tok, model, folder, call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as found:
        call(tok, model, folder)
    assert len(str(found.value).splitlines()) == 1 and len(str(found.value)) < 600
    assert not (folder / "features").exists() or not any((folder / "features").iterdir())


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("transformers", lambda f: VideoLanguageModel.from_scratch(tiny_language.config(), ["text"])),
        ("transformers", lambda f: VideoLanguageModel.from_pretrained(f / "language")),
        ("transformers", lambda f: base(f, "no-weights")),
        ("transformers", lambda f: LocalJudge(f)),
        ("peft", lambda f: tiny_language.language_model(lora=LoraConfig(rank=2))),
        ("diffusers", lambda f: HunyuanDecoder.from_pretrained(f)),
    ],
)
def test_missing_extras(folder, monkeypatch, library, call):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library}|pip install 'sweettok\[(vtok|llm)\]'") as found:
        call(folder)
    assert "pip install 'sweettok[" in str(found.value) and len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("data scenes {0}/s --num-train 0 --num-val 0", "clips must be at least 1, got 0"),
        ("data scenes {0}/s --size 16", "argument --size: expected a whole number of at least 32, got '16'"),
        ("data scenes {0}/tok", "the folder of a saved model"),
        ("eval tvalign-prompts {0}/t.txt", "that ends in .jsonl"),
        ("eval tvalign --triplets {0}/t --videos {0} --out {0}/r.json", "t: No such file or directory"),
        ("eval tvalign --triplets {0}/tok/config.json --videos {0} --out {0}/r.json", "line 1 is not a triplet"),
        ("eval tvalign --triplets {0}/t --videos {0} --out {0}/r.json --judge human", "invalid choice: 'human'"),
        ("eval vbench {0}/none", "none: No such file or directory"),
        ("eval vbench {0}/empty", "no results of VBench"),
        ("eval vbench {0}/nan.json", "nan.json is not a result of VBench: scene is nan, expected a number from 0 to 1"),
        ("eval vbench-export --prompts {0}/nan.json --videos {0}/no --out {0}/v", "no: No such file or directory"),
    ],
)
def test_commands(folder, capsys, arguments, message):
    (folder / "nan.json").write_text('{"scene": [NaN, []]}')
    assert main(arguments.format(folder).split()) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
