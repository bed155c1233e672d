"""Folders of weights: what is written comes back, and what does not fit is refused by name."""

import json

import pytest
import tiny
import torch

from sweettok import ProxyTokenizer, SweetTok


@pytest.fixture
def folder(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "tok")
    return tmp_path / "tok"


def rewrite(folder, **changes):
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**about, **changes}), encoding="utf-8")


@torch.no_grad()
@pytest.mark.parametrize("path", ["expected", "argmax", "none"])
def test_tokenizer_round_trip(path, tmp_path):
    model = tiny.tokenizer(tiny.tokenizer_config(tiny.proxy_config(width=24), pixel_path=path))
    model.save_pretrained(tmp_path / "deep" / "er")
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == ["config.json", "model.safetensors"]
    again = SweetTok.from_pretrained(str(tmp_path / "deep" / "er"))
    assert again.config == model.config and not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    video = tiny.clips(0, 1, width=24)
    out = again.encode(video)
    assert torch.equal(out.ids, model.encode(video).ids) and out.words() == model.encode(video).words()
    if path != "none":
        assert torch.equal(again.decode(out.ids), model.decode(out.ids))
    for ours, theirs in ((again.prior.spatial, model.prior.spatial), (again.prior.temporal, model.prior.temporal)):
        assert ours.words == theirs.words and torch.equal(ours.edges, theirs.edges)


@torch.no_grad()
def test_proxy_round_trip(tmp_path):
    model = tiny.proxy(tiny.proxy_config(block=tiny.block(20, temporal_peg="grid")))
    model.save_pretrained(tmp_path)
    again = ProxyTokenizer.from_pretrained(tmp_path)
    assert again.config == model.config and not again.training
    codes = model.encode(tiny.clip())
    assert torch.equal(again.encode(tiny.clip()), codes) and torch.equal(again.decode(codes), model.decode(codes))


@torch.no_grad()
def test_saving_again_replaces(folder):
    other = tiny.tokenizer(tiny.tokenizer_config(head_hidden=12), seed=1)
    other.save_pretrained(folder)
    again = SweetTok.from_pretrained(folder)
    assert again.config.head_hidden == 12 and torch.equal(again(tiny.clip()), other(tiny.clip()))
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_saved_configuration_is_plain_json(folder):
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert about["model"] == "SweetTok" and about["format"] == 1
    assert about["config"]["proxy"]["num_codes"] == 32 and about["config"]["spatial_query_grid"] == [2, 2]
    assert about["config"]["words"] == {"adjectives": 11, "nouns": 13, "adverbs": 7, "verbs": 17}
    assert [len(words) for words in about["assets"]["words"]["temporal"]] == [7, 17]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"tok holds no {name}: give a folder written by"):
        SweetTok.from_pretrained(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere holds no config.json"):
        SweetTok.from_pretrained(tmp_path / "nowhere")


def test_another_model(folder):
    with pytest.raises(ValueError, match="holds 'SweetTok' in format 1, expected 'ProxyTokenizer' in format 1"):
        ProxyTokenizer.from_pretrained(folder)


def test_another_format(folder):
    rewrite(folder, format=2)
    with pytest.raises(ValueError, match="holds 'SweetTok' in format 2, expected 'SweetTok' in format 1"):
        SweetTok.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[]", "3", ""])
def test_config_that_is_none(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match="tok holds "):
        SweetTok.from_pretrained(folder)


def test_damaged_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for part in (whole[:100], whole[:-10], b""):
        (folder / "model.safetensors").write_bytes(part)
        with pytest.raises(ValueError, match="tok holds a damaged file"):
            SweetTok.from_pretrained(folder)


def test_weights_of_another_size(folder):
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for changes, message in (
        ({"head_hidden": 21}, "size mismatch"),
        ({"decoder_temporal": "t"}, "Unexpected key"),
        ({"encoder_spatial": "twtt"}, "Missing key"),
        ({"colour": "red"}, "colour"),
        ({"encoder_spatial": "abc"}, "must be a non-empty string over"),
    ):
        rewrite(folder, config={**about["config"], **changes})
        with pytest.raises(ValueError, match=f"(?s)do not fit together.*{message}"):
            SweetTok.from_pretrained(folder)


OTHER_WORDS = {"spatial": [["a"], ["b"]], "temporal": [["c"], ["d"]]}


@pytest.mark.parametrize("assets", [{}, {"words": {}}, {"words": OTHER_WORDS}])
def test_missing_words(folder, assets):
    rewrite(folder, assets=assets)
    with pytest.raises(ValueError, match="do not fit together"):
        SweetTok.from_pretrained(folder)
