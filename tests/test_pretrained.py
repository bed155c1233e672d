"""Folders of weights: what is written comes back, and what does not fit is refused by name. tests/test_hub.py: those of
the hub; tests/test_card.py: their cards."""

import json

import pytest
import tiny
import torch

import sweettok
from sweettok import ProxyTokenizer, SweetTok
from sweettok.hub import pretrained
from sweettok.hub.pretrained import FORMAT
from sweettok.store import sha256

FILES = ["README.md", "config.json", "model.safetensors"]


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
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == FILES
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
    assert sorted(p.name for p in folder.iterdir()) == FILES


def test_saved_configuration_is_plain_json(folder):
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert about["model"] == "SweetTok" and about["format"] == FORMAT and about["training"] is None
    assert about["sweettok"] == sweettok.__version__
    assert about["weights_sha256"] == sha256(folder / "model.safetensors")
    assert about["config"]["proxy"]["num_codes"] == 32 and about["config"]["spatial_query_grid"] == [2, 2]
    assert about["config"]["words"] == {"adjectives": 11, "nouns": 13, "adverbs": 7, "verbs": 17}
    assert [len(words) for words in about["assets"]["words"]["temporal"]] == [7, 17]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"tok holds no {name}: give a folder written by"):
        SweetTok.from_pretrained(folder)


def test_missing_folder(tmp_path):
    for name in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "nowhere"):
        with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere: give one written by"):
            SweetTok.from_pretrained(name)


def test_a_file_is_no_folder(folder):
    with pytest.raises(
        FileNotFoundError, match="model.safetensors is a file: give a folder written by save_pretrained"
    ):
        SweetTok.from_pretrained(folder / "model.safetensors")


def test_another_model(folder):
    with pytest.raises(ValueError, match="tok holds 'SweetTok', expected 'ProxyTokenizer': give a folder that its"):
        ProxyTokenizer.from_pretrained(folder)


def test_older_formats_are_migrated(folder, monkeypatch):
    """An entry of the list changes the configuration and the tensors of a folder of the format before it."""

    def migrate(saved, tensors):
        saved["config"]["pixel_path"] = saved["config"].pop("pixels")
        tensors[name].neg_()

    model = SweetTok.from_pretrained(folder)
    name, weight = next(iter(model.named_parameters()))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    config["pixels"] = config.pop("pixel_path")
    rewrite(folder, config=config)
    monkeypatch.setattr(pretrained, "MIGRATIONS", [migrate])
    monkeypatch.setattr(pretrained, "FORMAT", 2)
    again = SweetTok.from_pretrained(folder)
    assert again.config == model.config and torch.equal(again.state_dict()[name], -weight)
    again.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["format"] == 2
    assert torch.equal(SweetTok.from_pretrained(folder).state_dict()[name], -weight)


def test_newer_formats(folder):
    rewrite(folder, format=FORMAT + 1, sweettok="9.8.7")
    wanted = (
        f"format {FORMAT + 1}, of sweettok 9.8.7; sweettok {sweettok.__version__} reads up to format {FORMAT}: update"
    )
    with pytest.raises(ValueError, match=wanted):
        SweetTok.from_pretrained(folder)


@pytest.mark.parametrize("version", [None, "2", 0, True, -1, 1.0])
def test_formats_that_never_were(folder, version):
    rewrite(folder, format=version)
    with pytest.raises(ValueError, match=r"tok is in format .*, expected a whole number of at least 1$"):
        SweetTok.from_pretrained(folder)


def test_files_of_two_saves(folder, tmp_path):
    """As after a save over a folder that was killed between its files, or a transfer that changed a bit."""
    tiny.tokenizer(seed=1).save_pretrained(tmp_path / "other")
    wording = (
        "tok: config.json and model.safetensors do not fit together: they are of different saves, or one of them is"
    )
    for content in ((tmp_path / "other" / "model.safetensors").read_bytes(), flipped(folder / "model.safetensors")):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=wording):
            SweetTok.from_pretrained(folder)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    return bytes(content)


def test_facts_of_the_training_stay_with_the_weights(tmp_path):
    facts = {"stage": "stage2", "steps": 3000, "rate": 1e-4}
    tiny.proxy().save_pretrained(tmp_path / "a", training=facts)
    model = ProxyTokenizer.from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in FILES)
    with torch.no_grad():
        model.to_code.bias += 1
    model.save_pretrained(tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["training"] is None
    assert ["3000" in (tmp_path / name / "README.md").read_text() for name in "abc"] == [True, True, False]


def test_facts_that_are_no_plain_data(tmp_path):
    with pytest.raises(ValueError, match="training must be plain text, numbers and lists"):
        tiny.proxy().save_pretrained(tmp_path / "a", training={"run": object()})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("content", ["{", "[]", "3", ""])
def test_config_that_is_none(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match="tok(: config.json is damaged| holds None, expected)"):
        SweetTok.from_pretrained(folder)


def test_damaged_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for part in (whole[:100], whole[:-10], b""):
        (folder / "model.safetensors").write_bytes(part)
        with pytest.raises(ValueError, match="tok: model.safetensors is damaged: "):
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
