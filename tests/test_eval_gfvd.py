"""The gfvd command: generated tokens or videos against real clips."""

import json

import pytest
import tiny
import torch

from sweettok.data.tokens import ShardWriter, TokenManifest, clips_hash
from sweettok.data.writer import write_video
from sweettok.eval import I3D, frechet_distance
from sweettok.eval.__main__ import main
from sweettok.eval.features import EXTRACTORS
from sweettok.pixels import to_uint8

FRAMES, SIZE, COUNT = 9, 32, 6


class Means:
    """A tiny extractor: mean and deviation of each channel, and how much the frames change."""

    width, min_frames = 7, 2

    def to(self, device):
        return self

    def __call__(self, frames):
        values = frames.float() / 255
        change = (values[:, 1:] - values[:, :-1]).abs().mean((1, 2, 3, 4))
        return torch.cat([values.mean((1, 2, 3)), values.std((1, 2, 3)), change[:, None]], dim=1)


@pytest.fixture
def means(monkeypatch, tmp_path):
    monkeypatch.setitem(EXTRACTORS, "means", lambda path, protocol: Means())
    (tmp_path / "weights.pt").write_bytes(b"weights")
    return ["--set", "detector=means", "--i3d", str(tmp_path / "weights.pt")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer, real videos, generated tokens, and what they decode to as lossless videos."""
    folder = tmp_path_factory.mktemp("gfvd")
    model = tiny.tokenizer(tiny.tokenizer_config(tiny.proxy_config(SIZE, SIZE, FRAMES, patch_size=8)))
    model.save_pretrained(folder / "tok")
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(s.list_size, (COUNT, s.length), generator=generator) for s in model.layout.segments]
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

    torch.manual_seed(0)
    i3d = I3D(batch_norm_eps=1e-3)
    torch.save(i3d.state_dict(), tmp_path / "i3d.pt")
    code, report = gfvd(folder, tmp_path, "--i3d", tmp_path / "i3d.pt", "--limit", 3)
    assert code == 0 and report["gfvd_refused"] is None
    sides = []
    for name in ("real", "fake"):
        dataset = ClipDataset(load_clips(folder / name).subset(range(3)), FRAMES, SIZE)
        video = torch.stack([item["video"] for item in dataset])
        sides.append(i3d(video.movedim(1, -1), antialias=True))
    assert report["results"]["gfvd"]["value"] == pytest.approx(frechet_distance(*sides), rel=1e-4)
    assert report["protocol"]["detector_file"] and "biased upwards" in report["notes"][0]


def test_without_weights_there_is_a_report_and_a_warning(folder, tmp_path, capsys):
    code, report = gfvd(folder, tmp_path)
    assert code == 0 and "--i3d" in report["gfvd_refused"] and "gfvd" not in report["results"]
    assert report["data"]["fake"]["num_clips"] == COUNT and report["results"]["usage"]["noun"]["used"] > 1
    assert "warning: gFVD not measured: no I3D weights" in capsys.readouterr().out


def test_another_tokenizer_is_refused(folder, tmp_path, capsys):
    config = tiny.tokenizer_config(tiny.proxy_config(SIZE, SIZE, FRAMES, patch_size=8))
    tiny.tokenizer(config, seed=1).save_pretrained(tmp_path / "other")
    assert gfvd(folder, tmp_path, "--checkpoint", tmp_path / "other")[0] == 1
    assert "are of the tokenizer" in capsys.readouterr().err
    assert main(["gfvd", "--fake", str(folder / "tokens"), "--real", str(folder / "real")]) == 1
    assert "give --checkpoint" in capsys.readouterr().err
