"""Models that are part of the package: found by name without the Hub, in half precision; the scripts that make them."""

import json
import re
import sys
from pathlib import Path

import pytest
import tiny
import torch
from conftest import import_file
from safetensors.torch import load_file

from sweettok import Generator, ProxyTokenizer, SweetTok
from sweettok.cli.main import main
from sweettok.data.lists import load_clips
from sweettok.data.writer import write_video
from sweettok.eval.tokenizers import load_tokenizer
from sweettok.generator.config import GeneratorConfig
from sweettok.hub import find_shipped, is_shipped, model_folder, pretrained
from sweettok.pixels import to_uint8
from sweettok.stages.codes import proxy_config
from sweettok.stages.inputs import Inputs
from sweettok.stages.stage1 import start_from

REPOSITORY = Path(__file__).resolve().parents[1]
CLASSES = {"tokenizer": SweetTok, "proxy": ProxyTokenizer, "generator": Generator}
FACTS = {"steps": 3}


def script(name):
    return import_file(REPOSITORY / "scripts" / "mini" / f"{name}.py", f"mini_{name}")


def generator(tokenizer):
    config = GeneratorConfig(
        dim=16, num_layers=1, num_heads=2, layout=tokenizer.layout, num_classes=2, tokenizer_hash=tokenizer.ids_hash()
    )
    return tiny.fill(Generator(config, ("rise", "fall")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders as training writes them, and the exported ones at root/mini."""
    folder, patch = tmp_path_factory.mktemp("mini"), pytest.MonkeyPatch()
    export, out = script("export").main, ["--out", str(folder / "root" / "mini")]
    rows = [{"step": 2, "step_seconds": 600.0}, {"step": 3, "step_seconds": 1200.0}, {"step": 3, "eval/psnr": 21.0}]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.tokenizer().save_pretrained(folder / "tokenizer", training=FACTS)
    tiny.proxy().save_pretrained(folder / "proxy", training=FACTS)
    sources = [word for name in ("tokenizer", "proxy") for word in (f"--{name}", str(folder / name))]
    patch.setattr(sys, "argv", ["export.py", *out, *sources])
    export()
    generator(SweetTok.from_pretrained(folder / "root/mini/tokenizer")).save_pretrained(folder / "generator")
    patch.setattr(sys, "argv", ["export.py", *out, "--generator", str(folder / "generator")])
    export()
    patch.undo()
    return folder


@pytest.fixture
def root(trained, tmp_path, monkeypatch):
    """The root of the package's models, in an empty working directory, where the Hub must not be asked."""
    monkeypatch.setattr("sweettok.hub.shipped.ROOT", trained / "root")
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda *a, **k: pytest.fail("asked the Hub"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return trained / "root"


@pytest.mark.parametrize("name", CLASSES)
def test_found_by_name(name, root, trained):
    model, before = CLASSES[name].from_pretrained("mini"), CLASSES[name].from_pretrained(trained / name)
    saved = load_file(root / "mini" / name / "model.safetensors")
    for key, value in before.state_dict().items():
        found = model.state_dict()[key]
        assert found.dtype == value.dtype and saved[key].dtype == (
            torch.float16 if found.is_floating_point() else value.dtype
        )
        assert found.equal(value.half().to(value.dtype) if value.is_floating_point() else value)
    assert model.config == before.config and not model.training
    page = (root / "mini" / name / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-4.0" in page and f'{type(model).__name__}.from_pretrained("mini")' in page
    assert "Jhuang" in page and (name == "generator" or "| steps | 3 |" in page)
    assert "| hours of computing | 0.67 |" in page and "| eval/psnr on held-out training sources | 21.00 |" in page


@torch.no_grad()
def test_the_shipped_ids_are_those_of_the_rounded_weights(root, tmp_path):
    model, video = SweetTok.from_pretrained("mini"), tiny.clips(0, 1)
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    full, half = (SweetTok.from_pretrained(tmp_path / name) for name in ("full", "half"))
    ids = model.encode(video).ids
    assert ids.equal(full.encode(video).ids) and ids.equal(half.encode(video).ids)
    assert model.decode(ids).equal(half.decode(ids)) and model.prior.spatial.vectors.dtype == torch.float32
    assert model.ids_hash() == full.ids_hash() == half.ids_hash() != tiny.tokenizer().ids_hash()
    about = [
        json.loads(Path(folder, "config.json").read_text()) for folder in (root / "mini/tokenizer", tmp_path / "half")
    ]
    assert about[0] == about[1] and about[0]["training"].items() > FACTS.items()  # hash of the file included


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    model = tiny.proxy()
    model.codebook.counts[0] = 1e5
    with pytest.raises(ValueError, match=r"codebook.counts has values up to 100000, too large for torch.float16"):
        model.save_pretrained(tmp_path, dtype=torch.float16)
    assert not any(tmp_path.iterdir())


def test_a_folder_of_that_name_comes_first(root, trained):
    assert model_folder("mini") == root / "mini/tokenizer" and find_shipped(Path("mini")) == Path("mini")
    tiny.tokenizer(seed=1).save_pretrained("mini")
    assert model_folder("mini", "SweetTok") == Path("mini")
    assert SweetTok.from_pretrained("mini").ids_hash() == tiny.tokenizer(seed=1).ids_hash()


def test_missing_files_are_named(root, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sweettok.hub.shipped.ROOT", tmp_path / "none")
    assert not is_shipped("mini")
    for cls in CLASSES.values():
        with pytest.raises(FileNotFoundError, match="'mini' is a model of sweettok, but this installation lacks its"):
            cls.from_pretrained("mini")
    assert main(["encode", "clip.mp4", "--checkpoint", "mini", "--out", "ids.safetensors"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: 'mini' is a model of sweettok, but")


def test_commands_take_the_name(root):
    write_video("clip.mkv", to_uint8(tiny.clip())[0], 8, lossless=True)
    assert main(["encode", "clip.mkv", "--checkpoint", "mini", "--out", "ids.safetensors"]) == 0
    assert main(["decode", "ids.safetensors", "--checkpoint", "mini", "--out", "back.mp4"]) == 0
    assert main(["eval", "reconstruct", "clip.mkv", "--checkpoint", "mini", "--out", "shown"]) == 0
    assert main(["sample", "--generator", "mini", "--tokenizer", "mini", "--per-class", "1", "--out", "samples"]) == 0
    assert Path("back.mp4").is_file() and len(list(Path("samples/videos").iterdir())) == 2


def test_stages_take_the_name(root):
    proxy = ProxyTokenizer.from_pretrained("mini")
    assert proxy_config("mini") == proxy.config == Inputs().proxy("mini", proxy.config).config
    tokenizer = Inputs().tokenizer("mini")
    assert isinstance(load_tokenizer("mini"), SweetTok) and start_from(tokenizer, "mini")


def test_the_demo_starts_with_it(root, monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr("sweettok.cli.demo.load", lambda *models: loaded.append(models[:2]) or 1 / 0)
    for words in ([], ["--checkpoint", "other/model"]):
        with pytest.raises(ZeroDivisionError):
            main(["demo", *words])
    assert loaded == [("mini", "mini"), ("other/model", None)]
    monkeypatch.setattr("sweettok.hub.shipped.ROOT", tmp_path / "none")
    assert main(["demo"]) == 2  # --checkpoint is required then


def test_export_refuses_what_cannot_ship(trained, tmp_path, monkeypatch):
    export = script("export")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["export.py", "--out", *map(str, words)])
        export.main()

    run(tmp_path, "--tokenizer", trained / "tokenizer")
    generator(SweetTok.from_pretrained(trained / "tokenizer")).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="trained on ids of another tokenizer .* export the tokenizer first"):
        run(tmp_path, "--generator", tmp_path / "other")
    results = {"weights": {"tokenizer": {"model.safetensors": "0" * 64}}}
    (tmp_path / "mini.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="is of other weights"):
        run(tmp_path, "--tokenizer", trained / "tokenizer", "--results", tmp_path)
    monkeypatch.setattr(export, "MOST", 1000)
    with pytest.raises(ValueError, match="too large to ship"):
        run(tmp_path, "--proxy", trained / "proxy")


def test_the_split_keeps_sources_together(tmp_path, monkeypatch):
    prepare = script("prepare")
    names = [
        f"{c}/S{source}_{c}_f_cm_{take}.mp4" for source in range(40) for c in ("golf", "kick_ball") for take in (0, 1)
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "train.txt").write_text("".join(f"{name}\t{1 + name.startswith('kick')}\n" for name in names))
    (tmp_path / "classes.txt").write_text("golf\nkick_ball\n")
    words = f"--train {tmp_path}/train.txt --classes {tmp_path}/classes.txt --out {tmp_path}/out".split()
    monkeypatch.setattr(sys, "argv", ["prepare.py", *words])
    prepare.main()
    fit, dev = (load_clips(tmp_path / "out" / f"jhmdb_{name}.txt") for name in ("fit", "dev"))
    sources = [{prepare.source(path) for path in part.paths} for part in (fit, dev)]
    assert len(fit) + len(dev) == len(names) and not sources[0] & sources[1] and 1 <= len(sources[1]) <= 8
    with pytest.raises(ValueError, match="as J-HMDB's clips are named"):
        prepare.source(Path("golf/other.mp4"))


def test_the_wheel_takes_the_folders():
    """Also while there are none: the patterns of pyproject.toml."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(r'"([^"]+)"', re.search(r"package-data\]\nsweettok = \[(.*)\]", text)[1])
    there = [path.relative_to(REPOSITORY / "sweettok") for path in shipped_files(REPOSITORY / "sweettok/pretrained")]
    for path in [Path("pretrained/mini/proxy/model.safetensors"), *there]:
        assert any(path.match(pattern) for pattern in patterns), path


def shipped_files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]
