"""Model cards: what they say is so, and pages that somebody has edited stay."""

import hashlib
import json
import re

import extractors
import pytest
import tiny
import torch
from huggingface_hub import ModelCard

from sweettok import Generator, ProxyTokenizer, SweetTok
from sweettok.cli.main import main
from sweettok.data.lists import clips_hash
from sweettok.data.manifest import TokenManifest
from sweettok.data.tokens import ShardWriter
from sweettok.data.writer import write_video
from sweettok.eval.features import EXTRACTORS
from sweettok.generator.card import CARD as GENERATOR_CARD
from sweettok.generator.config import GeneratorConfig
from sweettok.hub.card import changed_settings
from sweettok.pixels import to_uint8
from sweettok.proxy.config import ProxyConfig
from sweettok.store import sha256
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.layout import TokenLayout

SIZE = 32


def tokenizer(**changes):
    return tiny.tokenizer(tiny.tokenizer_config(tiny.proxy_config(SIZE, SIZE, patch_size=8), **changes))


def generator(names=("rise", "fall"), **changes):
    settings = {"dim": 16, "num_layers": 1, "num_heads": 2, "num_classes": 2, "layout": tiny.tokenizer().layout}
    return tiny.fill(Generator(GeneratorConfig(**settings | {"tokenizer_hash": "5e" * 32} | changes), names))


def page(model, folder, **options):
    model.save_pretrained(folder, **options)
    return (folder / "README.md").read_text(encoding="utf-8")


def rows(text, title):
    """First cell -> the others, of the table under a heading."""
    lines = text.split(f"\n## {title}\n")[1].split("\n## ")[0].split("--- |\n")[-1].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {name: others for name, *others in cells}


def sizes(model, folder):
    return {name: value for name, (value,) in rows(page(model, folder), "Sizes").items()}


# ------------------------------------------------------------------------------------------------------------- facts


def test_sizes_of_a_tokenizer(tmp_path):
    model = tokenizer()
    found = sizes(model, tmp_path)
    assert found["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert (found["clip"], found["ids of a clip"], found["bits of a clip"]) == ("9 frames of 32x32", "60", "198")
    assert found["verb ids"] == "16, each one of 17 words"
    content = (tmp_path / "model.safetensors").read_bytes()
    assert found["SHA-256 of model.safetensors"] == f"`{hashlib.sha256(content).hexdigest()}`"


def test_sizes_of_the_other_kinds(tmp_path):
    found = sizes(tiny.proxy(), tmp_path / "proxy")
    assert (found["codes of a clip"], found["bits of a clip"]) == ("3x4x4, each one of 32", "240")
    union = sizes(tiny.tokenizer(tiny.union_config()), tmp_path / "union")
    assert (union["ids of a clip"], union["temporal ids"]) == ("20", "16, each one of 24 words")
    branch = sizes(tiny.fill(SweetTok(tiny.tokenizer_config(), tiny.prior().spatial)), tmp_path / "branch")
    assert (branch["image"], branch["ids of an image"]) == ("16x16", "12") and "verb ids" not in branch
    found = sizes(generator(), tmp_path / "gen")
    assert (found["layers"], found["classes"]) == ("1 of width 16, 2 heads", "rise, fall")
    assert found["guidance"] == "possible"
    assert (found["vocabulary"], found["ids of a clip"]) == ("60", "60") and "5e5e" in found["tokenizer"]
    found = sizes(generator(None, num_classes=0, given_frames=5), tmp_path / "frames")
    assert (found["conditioned on"], found["guidance"]) == ("5 given frames", "not possible")


def test_settings_that_differ_from_the_release(tmp_path):
    text = page(tiny.tokenizer(tiny.union_config(spatial_source="first_frame")), tmp_path)
    found = rows(text, "Settings")
    assert found["`lookup`"] == ["`union`", "`modifiers_and_head`"]
    assert found["`spatial_source`"] == ["`first_frame`", "`all_slices`"]
    assert found["`proxy.block.dim`"] == ["`20`", "`512`"]
    assert found["`spatial_query_grid`"] == ["`[2, 2]`", "`[16, 16]`"]
    assert not found.keys() & {"`temporal_source`", "`words.nouns`", "`modifiers_per_query`", "`block.temporal_peg`"}


@pytest.mark.parametrize("config", [TokenizerConfig(), ProxyConfig(), GeneratorConfig(layout=TokenLayout())])
def test_settings_of_the_release(config):
    assert changed_settings(config, GENERATOR_CARD.derived) == "All settings are the defaults."


def test_metadata(tmp_path):
    model = tiny.proxy()
    data = ModelCard(page(model, tmp_path)).data.to_dict()
    assert data["library_name"] == "sweettok" and {"video-tokenizer", "arxiv:2412.10443"} <= set(data["tags"])
    assert "license" not in data  # nobody has said
    assert ModelCard(page(model, tmp_path, license="cc-by-4.0")).data.license == "cc-by-4.0"


def test_nothing_is_said_of_what_is_not_known(tmp_path):
    text = page(tokenizer(), tmp_path)
    assert "## Training" not in text and "## Measured" not in text and "PSNR" not in text


@pytest.mark.parametrize("kind", ["tokenizer", "branch", "stage 1", "proxy", "generator"])
def test_what_is_shown_works(kind, tmp_path):
    model = {
        "tokenizer": tokenizer,
        "proxy": tiny.proxy,
        "generator": generator,
        "branch": lambda: tiny.fill(SweetTok(tiny.tokenizer_config(pixel_path="none"), tiny.prior().spatial)),
        "stage 1": lambda: tokenizer(pixel_path="none"),
    }[kind]()
    text = page(model, tmp_path)
    shown = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("path/to/this/folder", str(tmp_path))
    wording = re.search(r"# \(B, (3, .*?)\)", shown)
    names = {"video": torch.zeros(2, *map(int, wording[1].split(", ")))} if wording else {}
    exec(compile(shown, "README.md", "exec"), names)
    assert names["ids" if kind == "generator" else "codes" if kind == "proxy" else "out"] is not None


# ----------------------------------------------------------------------------------------------------- edited pages


@pytest.mark.parametrize("edit", [lambda t: t + "More.\n", lambda t: "# Mine\n", lambda t: "", lambda t: t[4:]])
def test_edited_pages_stay(edit, tmp_path):
    text = page(tiny.proxy(), tmp_path)
    assert page(tiny.proxy(seed=1), tmp_path) != text
    mine = edit(text)
    (tmp_path / "README.md").write_text(mine, encoding="utf-8")
    assert page(tiny.proxy(), tmp_path) == mine
    with pytest.raises(ValueError, match="README.md was edited by hand and is kept, so it cannot show the report"):
        tiny.proxy(seed=1).save_pretrained(tmp_path, report={})
    assert torch.equal(ProxyTokenizer.from_pretrained(tmp_path).to_code.weight, tiny.proxy().to_code.weight)


# ---------------------------------------------------------------------------------------------------------- reports


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A tokenizer, and what the commands rfvd and gfvd report of it and of ids at random."""
    folder, model = tmp_path_factory.mktemp("measured"), tokenizer()
    model.save_pretrained(folder / "tok")
    for i, clip in enumerate(to_uint8(tiny.clips(*range(4), height=SIZE, width=SIZE))):
        write_video(folder / "clips" / f"v{i}.mkv", clip, 8, lossless=True)
    keys = [f"s{i}" for i in range(4)]
    facts = ("generated", model.ids_hash(), model.layout, len(keys), clips_hash(keys), 9)
    generator().save_pretrained(folder / "generator")
    settings = {"generator": sha256(folder / "generator" / "model.safetensors")}
    writer = ShardWriter(folder / "tokens", TokenManifest(*facts, rows_per_shard=4, settings=settings), keys)
    for shard in writer.pending():
        writer.write(shard, model.encode(tiny.clips(*range(4, 8), height=SIZE, width=SIZE)).ids)
    (folder / "weights.pt").write_bytes(b"weights")
    means = ["--set", "detector=means", "--i3d", str(folder / "weights.pt"), "--workers", "0"]
    common = ["--checkpoint", str(folder / "tok"), *means]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXTRACTORS, "means", extractors.build)
        for name, data in (("rfvd", ["--data", "clips"]), ("gfvd", ["--fake", "tokens", "--real", "clips"])):
            data = [part if part.startswith("--") else str(folder / part) for part in data]
            assert main(["eval", name, *data, *common, "--out", str(folder / f"{name}.json")]) == 0
    return folder


def test_a_report_with_its_protocol_beside_every_number(measured, tmp_path):
    report = json.loads((measured / "rfvd.json").read_text())
    text = page(SweetTok.from_pretrained(measured / "tok"), tmp_path, report=measured / "rfvd.json")
    found = rows(text, "Measured")
    psnr = report["results"]["scores"]["reconstruction"]["psnr"]
    assert found["PSNR, dB"][0] == f"{psnr['mean']:.3f} +- {psnr['interval95']:.3f}"
    first = report["results"]["scores"]["first frame"]["psnr"]["mean"]
    assert found["PSNR, dB of the first frame, for comparison"][0].startswith(f"{first:.3f} +- ")
    assert found["rFVD"][0].startswith(f"{report['results']['rfvd']['value']:.3f}; two halves of the real clips: ")
    assert found["words used: noun"][0].startswith(f"{report['results']['usage']['noun']['used']} of 13, perplexity")
    assert report["notes"] and all(f"\n\nNote: {note}.\n" in text for note in report["notes"])
    label = f"{report['protocol']['name']} ({report['protocol_hash'][:12]})"
    assert len(found) == 14 and all(row[1:] == ["4 clips", label] for row in found.values())
    assert page(SweetTok.from_pretrained(measured / "tok"), tmp_path, report=report) == text
    assert "## Measured" not in page(SweetTok.from_pretrained(measured / "tok"), tmp_path)


def test_a_number_that_was_not_measured_is_not_there(measured, tmp_path):
    report = json.loads((measured / "rfvd.json").read_text())
    report["rfvd_refused"] = "no I3D weights"
    del report["results"]["rfvd"]
    text = page(SweetTok.from_pretrained(measured / "tok"), tmp_path, report=report)
    assert "\n\nrFVD was not measured: no I3D weights.\n" in text and "| rFVD |" not in text


def test_a_report_of_generated_clips(measured, tmp_path):
    report = json.loads((measured / "gfvd.json").read_text())
    found = rows(page(generator(), tmp_path, report=report), "Measured")
    assert found["gFVD"][0].startswith(f"{report['results']['gfvd']['value']:.3f}")
    assert found["gFVD"][1] == "4 against 4 clips" and report["protocol_hash"][:12] in found["gFVD"][2]
    report["weights"]["generator"] = None  # as where generated videos were scored
    assert "gFVD" in rows(page(tiny.fill(generator(), seed=1), tmp_path, report=report), "Measured")


def test_reports_that_are_refused(measured, tmp_path):
    other = tmp_path / "other.json"
    report = json.loads((measured / "rfvd.json").read_text())
    model = SweetTok.from_pretrained(measured / "tok")
    for given, wording in (
        (tmp_path / "none.json", "No such file"),
        ("[]", "other.json is not a report of `sweettok eval`"),
        ("{", "other.json is not a report: Expecting"),
        ({**report, "results": {}}, "the report is not a report of `sweettok eval`"),
        (measured / "gfvd.json", "gfvd.json is of gfvd; a SweetTok is measured by rfvd"),
        ({**report, "weights": {"tokenizer": None}}, "the report is of no weights, these are"),
    ):
        if isinstance(given, str):
            other.write_text(given)
            given = other
        with pytest.raises((ValueError, OSError), match=wording):
            model.save_pretrained(tmp_path / "out", report=given)
    with torch.no_grad():
        model.decoder.mask_token += 1
    with pytest.raises(ValueError, match="rfvd.json is of the weights [0-9a-f]{12}, these are [0-9a-f]{12}: measure"):
        model.save_pretrained(tmp_path / "out", report=measured / "rfvd.json")
    with pytest.raises(ValueError, match="gfvd.json is of the weights [0-9a-f]{12}, these are [0-9a-f]{12}: measure"):
        tiny.fill(generator(), seed=1).save_pretrained(tmp_path / "out", report=measured / "gfvd.json")
    with pytest.raises(ValueError, match="is of rfvd; a Generator is measured by gfvd"):
        generator().save_pretrained(tmp_path / "out", report=measured / "rfvd.json")
    assert not (tmp_path / "out").exists()
