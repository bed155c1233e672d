"""Scoring a tokenizer, its report, and the files of the reconstruct command."""

import json
import math
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file

from sweettok.cli.main import main as cli
from sweettok.data.reader import probe, read_clip
from sweettok.data.writer import TITLE, enlarge, write_video
from sweettok.eval import frechet_distance, reconstruction
from sweettok.eval.distance import cautions, measure, refusal, stack_features
from sweettok.eval.features import EXTRACTORS, I3DFeatures
from sweettok.eval.metrics import motion_psnr, psnr, ssim
from sweettok.eval.pipeline import collect, in_order
from sweettok.eval.protocol import PRESETS
from sweettok.eval.reconstruction import Scorer, baselines, find_notes, reconstructed, summarize
from sweettok.eval.tokenizers import load_tokenizer, merge_usage, round_trip
from sweettok.eval.visual import unique_names
from sweettok.pixels import to_float, to_uint8
from sweettok.store import sha256
from sweettok.tokenizer.layout import TokenLayout

FRAMES, SIZE = 9, 32


def main(arguments):
    """`sweettok eval ...`"""
    return cli(["eval", *arguments])


RELEASE = PRESETS["sweettok-rfvd-ucf101"].filled(dtype="float64")


@pytest.fixture(autouse=True)
def no_cached_weights(monkeypatch, tmp_path):
    """Weights that this machine may have are not there."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def clips(count, seed=0, frames=FRAMES):
    """Smooth moving clips, uint8 (count, 3, T, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (frames, SIZE, SIZE), mode="trilinear")
    return (smooth * 255).to(torch.uint8)


def batches(video, size):
    numbers = torch.arange(len(video))
    return [
        {"video": part, "index": index, "key": [f"clip{i}" for i in index.tolist()]}
        for part, index in zip(video.split(size), numbers.split(size), strict=True)
    ]


def evaluate(tokenizer, clips, extractor=None, lpips=None, protocol=RELEASE):
    """Summary of the scores, and the rFVD where there is an extractor."""
    scorer = Scorer(protocol, extractor, lpips)
    found = in_order(collect(reconstructed(clips, tokenizer, protocol), scorer))
    return summarize(found, scorer.usage), distance(found, protocol)["value"] if extractor else None


def distance(clips, protocol=RELEASE):
    return measure(stack_features(clips, "real"), stack_features(clips, "fake"), protocol)


@dataclass
class Output:
    ids: torch.Tensor
    layout: TokenLayout


class Levels:
    """A tokenizer with words: one id per query from a table of levels, decoded to flat frames plus the overshoot."""

    layout = TokenLayout(1, 1, 4, 4, 4, 4, 1)

    def encode(self, video):
        level = to_float(video).mean((1, 2, 3, 4)).add(0.5).mul(3.999).long().clamp(0, 3)
        return Output(self.layout.to_global(level[:, None].expand(-1, 4)), self.layout)

    def decode(self, ids):
        level = self.layout.to_local(ids)[:, 0].float() / 3 * 1.2 - 0.6
        return level.view(-1, 1, 1, 1, 1).expand(-1, 3, FRAMES, SIZE, SIZE)


class Exact:
    """A tokenizer of plain codes that loses nothing."""

    config = SimpleNamespace(num_codes=256)

    def encode(self, video):
        return video.long()

    def decode(self, codes):
        return codes / 255 - 0.5


class Features:
    """A detector in place of I3D: a few statistics of the bytes it is given, which it keeps."""

    width, min_frames = 9, 1

    def __init__(self):
        self.seen = []

    def to(self, device):
        return self

    def __call__(self, video):
        assert video.dtype == torch.uint8 and video.shape[1:] == (FRAMES, SIZE, SIZE, 3)
        self.seen.append(video)
        values = video.float()
        return torch.cat([values.mean((1, 2, 3)), values.std((1, 2, 3)), values[:, -1].mean((1, 2))], dim=1)


def absolute(images, target):
    return (images - target).abs().mean((1, 2, 3))


def test_a_perfect_tokenizer_scores_perfectly():
    video = clips(4)
    result, rfvd = evaluate(Exact(), batches(video, 2), Features(), absolute)
    scores = result["scores"]["reconstruction"]
    assert scores["psnr"]["mean"] == scores["motion"]["mean"] == 100
    assert scores["ssim"]["mean"] == pytest.approx(1, abs=1e-6)
    assert scores["lpips"]["mean"] == 0
    assert result["num_clips"] == 4 and result["usage"]["code"]["words"] == 256
    assert result["ids_per_clip"] == video[0].numel() and result["bits_per_clip"] == 8 * video[0].numel()
    assert result["bits_per_pixel"] == 24
    assert rfvd == pytest.approx(0, abs=2)  # only the originals pass through the model's range twice
    exact = RELEASE.filled(quantize="round")
    assert evaluate(Exact(), batches(video, 2), Features(), protocol=exact)[1] == pytest.approx(0, abs=1e-6)


def test_scores_by_hand():
    video = clips(6)
    detector = Features()
    result, rfvd = evaluate(Levels(), batches(video, 4), detector, absolute)
    tokenizer = Levels()
    output = tokenizer.decode(tokenizer.encode(video).ids).clamp(-0.5, 0.5)
    for name, pixels in {"reconstruction": output, **baselines(to_float(video))}.items():
        scores, shown = result["scores"][name], to_uint8(pixels)
        for metric, function in {"psnr": psnr, "ssim": ssim, "motion": motion_psnr}.items():
            assert scores[metric]["mean"] == pytest.approx(function(video, shown).mean().item())
    shown = to_uint8(output)
    assert [clip["key"] for clip in result["clips"]] == [f"clip{i}" for i in range(6)]
    assert [clip["psnr"] for clip in result["clips"]] == psnr(video, shown).tolist()
    expected = (to_float(video) - to_float(shown)).abs().mean().item()
    assert result["scores"]["reconstruction"]["lpips"]["mean"] == pytest.approx(expected)
    assert "lpips" not in result["scores"]["mean frame"]
    sides = [Features()(to_uint8(x, rounding="floor").movedim(1, -1)) for x in (to_float(video), output)]
    assert rfvd == pytest.approx(frechet_distance(*sides), rel=1e-6)
    dark = video.movedim(1, -1)[:4]
    darkened = torch.where((dark >= 1) & (dark <= 63), dark - 1, dark)  # what truncation does to originals
    assert torch.equal(detector.seen[0], darkened)


def test_baselines():
    video = to_float(clips(1))
    made = baselines(video)
    assert torch.equal(made["first frame"][:, :, 5], video[:, :, 0])
    torch.testing.assert_close(made["mean frame"][:, :, 5], video.mean(2))


def test_usage_and_bits_per_word_list():
    video = torch.cat([torch.zeros(1, 3, FRAMES, SIZE, SIZE), torch.full((3, 3, FRAMES, SIZE, SIZE), 255)]).byte()
    result, _ = evaluate(Levels(), batches(video, 3))
    assert list(result["usage"]) == ["adjective", "noun", "adverb", "verb"]
    noun = result["usage"]["noun"]
    assert (noun["ids"], noun["used"], noun["dead"]) == (4, 2, 2)
    assert noun["perplexity"] == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))
    assert result["ids_per_clip"] == 4 and result["bits_per_clip"] == 8
    assert set(result["scores"]["reconstruction"]) == {"psnr", "ssim", "motion"}


def test_batches_make_no_difference():
    video = clips(5)
    (whole, rfvd), (parts, again) = (evaluate(Levels(), batches(video, size), Features()) for size in (5, 2))
    assert parts == whole and again == pytest.approx(rfvd, rel=1e-6)


def test_parts_on_many_processes_are_the_whole():
    every = batches(clips(7), 1)

    def scores(share):
        scorer = Scorer(RELEASE, Features())
        return collect(reconstructed(share, Levels(), RELEASE), scorer), scorer.usage

    (whole, usage), *parts = [scores(every), *(scores(every[rank::3]) for rank in range(3))]
    merged = in_order(*(found for found, _ in parts))
    counts = merge_usage([None, *(part for _, part in parts)])
    assert summarize(merged, counts) == summarize(in_order(whole), usage)
    assert find_notes(merged) == find_notes(in_order(whole))
    assert distance(merged) == distance(in_order(whole))


def test_nothing_passes_silently():
    broken = Exact()
    broken.decode = lambda codes: torch.full(codes.shape, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        round_trip(broken, clips(1))
    broken.decode = lambda codes: codes / 255
    with pytest.raises(ValueError, match=r"to values in \[1, 1\], expected \[-0.5, 0.5\]"):
        round_trip(broken, torch.full_like(clips(1), 255))
    broken.decode = lambda codes: torch.zeros(1, 3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"to shape \(1, 3, 1, 8, 8\)"):
        round_trip(broken, clips(1))


def test_refusals_and_cautions():
    i3d = I3DFeatures(None, "stretch", False)
    assert refusal(3000, 17, None, "no weights") == "no weights"
    assert "at least 9" in refusal(3000, 8, i3d, "")
    assert "at least 2 clips per side" in refusal(1, 17, i3d, "")
    assert refusal(2, 9, i3d, "") is None
    assert cautions(2048, 4000, 400) == [] and "2047 clips" in cautions(2047, 9000, 400)[0]
    assert "400 dimensions" in cautions(400, 401, 400)[1] and len(cautions(401, 401, 400)) == 1


# ---------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer and a proxy with random weights, three clips, a list, and a video that is too short."""
    folder = tmp_path_factory.mktemp("eval")
    config = tiny.proxy_config(SIZE, SIZE, FRAMES, patch_size=8)
    tiny.tokenizer(tiny.tokenizer_config(config)).save_pretrained(folder / "tok")
    tiny.proxy(config).save_pretrained(folder / "proxy")
    for i, video in enumerate(clips(3, frames=12)):
        write_video(folder / "clips" / f"v{i}.mkv", video, fps=12, lossless=True)
    write_video(folder / "short" / "v0.mkv", clips(1, frames=6)[0], fps=10, lossless=True)
    (folder / "list.txt").write_text("v0.mkv\t1\nv1.mkv\t1\nv2.mkv\t2\n")
    return folder


def rfvd(folder, *more, checkpoint="tok"):
    data = ["--data", str(folder / "list.txt"), "--root", str(folder / "clips")]
    return main(["rfvd", "--checkpoint", str(folder / checkpoint), *data, "--workers", "0", *map(str, more)])


def test_report_without_weights(folder, tmp_path, capsys, monkeypatch):
    cache = ("--cache", tmp_path / "cache")
    assert rfvd(folder, "--out", tmp_path / "a", "--batch-size", 2, *cache) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert rfvd(folder, "--out", tmp_path / "c", "--batch-size", 3) == 0
    monkeypatch.setattr(reconstruction, "baselines", lambda video: pytest.fail("computed again"))
    assert rfvd(folder, "--out", tmp_path / "b", "--batch-size", 2, *cache) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    report = json.loads((tmp_path / "a").read_text())
    other = json.loads((tmp_path / "c").read_text())
    assert other["settings"].pop("batch_size") == 3 and report["settings"].pop("batch_size") == 2
    assert other == report
    assert report["data"]["num_clips"] == 3 and report["data"]["sha256"] == report["protocol"]["real_list"]
    protocol = report["protocol"]
    assert (protocol["frames"], protocol["height"], protocol["num_fake"], protocol["paired"]) == (FRAMES, SIZE, 3, True)
    assert len(report["weights"]["tokenizer"]["model.safetensors"]) == 64 and protocol["detector_file"] is None
    assert set(report["results"]["scores"]) == {"reconstruction", "first frame", "mean frame"}
    assert "rfvd" not in report["results"] and "--i3d" in report["rfvd_refused"]
    assert report["results"]["usage"]["verb"]["words"] == 17
    printed = capsys.readouterr().out
    assert "rFVD not measured: no I3D weights" in printed and "verb: " in printed and "mean frame" in printed


def test_report_scores_the_middle_frames(folder, tmp_path):
    assert rfvd(folder, "--out", tmp_path / "report.json", checkpoint="proxy") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    video = torch.stack([read_clip(folder / "clips" / f"v{i}.mkv", FRAMES, SIZE, start=2) for i in range(3)])
    direct, _ = evaluate(load_tokenizer(folder / "proxy"), batches(video, 4))
    for clip, key in zip(direct["clips"], ("v0", "v1", "v2"), strict=True):
        clip["key"] = key
    assert report["results"] == direct


def test_report_with_weights(folder, tmp_path, capsys, monkeypatch):
    for name in ("i3d.pt", "linear.pth", "vgg.pth"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr("sweettok.eval.rfvd.load_lpips", lambda vgg, linear: SmallLPIPS())
    monkeypatch.setitem(EXTRACTORS, "features", lambda path, protocol: Features())
    weights = ["--i3d", tmp_path / "i3d.pt", "--lpips", tmp_path / "linear.pth", "--vgg", tmp_path / "vgg.pth"]
    weights += ["--set", "detector=features", "--bootstrap", 20, "--cache", tmp_path / "cache"]
    for name in ("first", "second"):
        assert rfvd(folder, *weights, "--out", tmp_path / name, "--limit", 2) == 0
    report = json.loads((tmp_path / "first").read_text())
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]
    assert report["data"]["num_clips"] == 2 and report["rfvd_refused"] is None
    result = report["results"]["rfvd"]
    assert result["value"] >= -1e-6 and result["noise_floor"] is None and result["bootstrap"]["repeats"] == 20
    assert report["results"]["scores"]["reconstruction"]["lpips"]["count"] == 2
    assert report["protocol"]["detector_file"] == sha256(tmp_path / "i3d.pt") and "2 clips" in report["notes"][0]
    assert report["protocol"]["name"] == "exact detector=features"
    assert all(len(report["weights"][name]) == 64 for name in ("lpips", "vgg"))
    assert "note: a Frechet distance of 2 clips is biased upwards" in capsys.readouterr().out


def test_folders_of_another_tokenizer(folder, tmp_path, capsys):
    """Scored from its videos, a reconstruction gets the scores it has in memory."""
    videos = torch.stack([read_clip(folder / "clips" / f"v{i}.mkv", FRAMES, SIZE) for i in range(3)])
    shown = round_trip(load_tokenizer(folder / "tok"), videos).video
    for i, clip in enumerate(to_uint8(shown)):
        write_video(tmp_path / "theirs" / f"v{i}.mkv", clip, fps=12, lossless=True)
    pair = ["--originals", str(folder / "clips"), "--reconstructions", str(tmp_path / "theirs"), "--workers", "0"]
    pair += ["--position", "center"]
    assert main(["rfvd", *pair, "--out", str(tmp_path / "a")]) == 0
    assert rfvd(folder, "--out", tmp_path / "b") == 0
    theirs, ours = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert theirs["results"]["clips"] == ours["results"]["clips"] and theirs["input_check"] == ours["input_check"]
    assert theirs["results"]["usage"] is None and theirs["protocol"]["codec"] == "mkv"
    write_video(tmp_path / "theirs" / "more.mkv", clip, fps=12, lossless=True)
    assert main(["rfvd", *pair]) == 2
    assert "1 are in one of them only: more" in capsys.readouterr().err
    write_video(tmp_path / "theirs" / "v1.mkv", clip[..., :16], fps=12, lossless=True)
    (tmp_path / "theirs" / "more.mkv").unlink()
    assert main(["rfvd", *pair]) == 2
    assert "theirs/v1.mkv: frames are 32x16, others 32x32" in capsys.readouterr().err
    assert main(["rfvd", *pair[:2]]) == 2 and "give --checkpoint and --data" in capsys.readouterr().err


def test_reconstructions_of_another_length_need_a_position(tmp_path, capsys):
    """Perfect reconstructions of the first frames are not scored against the centre."""
    for i, video in enumerate(clips(2, frames=20)):
        write_video(tmp_path / "originals" / f"v{i}.mkv", video, fps=12, lossless=True)
        write_video(tmp_path / "theirs" / f"v{i}.mkv", video[:, :FRAMES], fps=12, lossless=True)
    pair = ["--originals", str(tmp_path / "originals"), "--reconstructions", str(tmp_path / "theirs"), "--workers", "0"]
    assert main(["rfvd", *pair]) == 2
    error = capsys.readouterr().err
    assert "originals/v0.mkv has 20 frames, its reconstruction" in error and "has 9: give --position" in error
    found = {}
    for position in ("first", "center"):
        assert main(["rfvd", *pair, "--position", position, "--out", str(tmp_path / "report.json")]) == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["protocol"]["position"] == position and report["protocol"]["frames"] == FRAMES
        found[position] = report["results"]["scores"]["reconstruction"]["psnr"]["mean"]
    assert found["first"] == 100 > found["center"] + 50


def test_a_report_does_not_replace_other_files(folder, tmp_path, capsys):
    (tmp_path / "notes.json").write_text('{"kind": "notes"}')
    wrong = {
        folder / "list.txt": "is an input",
        folder / "tok" / "report.json": "the folder of a saved model",
        tmp_path / "notes.json": "choose another name",
        folder / "clips": "is a folder",
    }
    for out, message in wrong.items():
        before = out.read_bytes() if out.is_file() else None
        assert rfvd(folder, "--out", out) == 2
        assert message in capsys.readouterr().err
        assert before == (out.read_bytes() if out.is_file() else None)


class SmallLPIPS(torch.nn.Module):
    def forward(self, images, target):
        return absolute(images, target)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_video_is_an_error_that_names_it(folder, tmp_path, capsys, workers):
    (tmp_path / "good.mkv").write_bytes((folder / "clips" / "v0.mkv").read_bytes())
    (tmp_path / "torn.mkv").write_bytes((folder / "clips" / "v1.mkv").read_bytes()[:300])
    arguments = ["--checkpoint", str(folder / "tok"), "--data", str(tmp_path), "--workers", workers]
    assert main(["rfvd", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "torn.mkv" in error


def test_bad_arguments_are_errors(folder, tmp_path, capsys):
    tiny_clips = [part for name in ("frames=9", "height=32", "width=32") for part in ("--set", name)]

    def error(*arguments, **options):
        assert rfvd(folder, *arguments, **options) == 2
        return capsys.readouterr().err

    assert "config.json" in error(checkpoint="clips")
    assert "--limit: expected a whole number of at least 1" in error("--limit", 0)
    assert "--batch-size: expected a whole number of at least 1" in error("--batch-size", 0)
    assert "nowhere.pt" in error("--i3d", tmp_path / "nowhere.pt")
    assert "give --lpips" in error("--vgg", tmp_path / "vgg.pth")
    assert "no protocol 'best'; there are exact, efficientnet, sweettok-rfvd-ucf101" in error("--protocol", "best")
    assert "this tokenizer needs --set frames=9" in error("--protocol", "sweettok-rfvd-ucf101")
    assert "for unpaired sets: use gfvd" in error("--protocol", "sweettok-gfvd-ucf101", *tiny_clips)
    assert "a setting is FIELD=VALUE" in error("--set", "colour=red")
    assert "are too few for 9 at stride 2" in error("--set", "stride=2")
    generator = tmp_path / "generator"
    generator.mkdir()
    (generator / "config.json").write_text('{"model": "Generator"}')
    with pytest.raises(ValueError, match="holds 'Generator', expected 'SweetTok' or 'ProxyTokenizer'"):
        load_tokenizer(generator)


def test_reconstruct_writes_what_it_saw(folder, tmp_path, capsys):
    videos = [str(folder / "clips" / "v1.mkv"), str(folder / "clips" / "v0.mkv"), str(folder / "short" / "v0.mkv")]
    assert main(["reconstruct", *videos, "--checkpoint", str(folder / "tok"), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "v1.mkv: PSNR" in printed and "spatial: adj" in printed
    note = "  note: the video is too short: 3 of 9 frames of the clip repeat the last one"
    assert printed.splitlines().count(note) == printed.count("note") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{kind}" for name in ("v1", "v0-1", "v0-2") for kind in ("mp4", "png", "json", "safetensors")
    )
    facts = json.loads((tmp_path / "v1.json").read_text())
    ids = load_file(tmp_path / "v1.safetensors")["ids"]
    assert ids.dtype == torch.int64 and ids.shape == (1, facts["ids_per_clip"])
    clip = read_clip(videos[0], FRAMES, SIZE)
    again = to_uint8(load_tokenizer(folder / "tok").decode(ids))
    assert facts["psnr"] == pytest.approx(psnr(clip[None], again).item())
    assert len(facts["psnr_per_frame"]) == FRAMES and facts["missing_frames"] == 0
    assert [segment["name"] for segment in facts["segments"]] == ["adjective", "noun", "adverb", "verb"]
    assert len(facts["words"]["spatial"]) == 4 and len(facts["words"]["temporal"]) == 8
    info = probe(tmp_path / "v1.mp4")
    large = enlarge(clip)
    height, width = large.shape[2:]
    assert (info.num_frames, info.height, info.width, info.fps) == (FRAMES, TITLE + height, 3 * width, 12)
    shown = read_clip(tmp_path / "v1.mp4", FRAMES, None)[:, :, TITLE:, :width]
    assert psnr(shown[None], large[None]).item() > 30
    assert json.loads((tmp_path / "v0-2.json").read_text())["missing_frames"] == 3


def test_reconstruct_does_not_overwrite_what_it_reads(folder, tmp_path, capsys):
    write_video(tmp_path / "v.mp4", read_clip(folder / "clips" / "v1.mkv", FRAMES, SIZE), 12, replaceable=False)
    before, tokenizer = (tmp_path / "v.mp4").read_bytes(), str(folder / "tok")
    assert main(["reconstruct", str(tmp_path / "v.mp4"), "--checkpoint", tokenizer, "--out", str(tmp_path)]) == 2
    assert "v.mp4 is an input and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "v.mp4").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "out").mkdir()
    command = ["reconstruct", str(tmp_path / "v.mp4"), "--checkpoint", tokenizer, "--out"]
    for name in ("v.safetensors", "v.json"):
        (tmp_path / "out" / name).write_text('{"kind": "weights"}')
        assert main([*command, f"{tmp_path}/out"]) == 2
        assert "choose another name" in capsys.readouterr().err and (tmp_path / "out" / name).stat().st_size == 19
        (tmp_path / "out" / name).unlink()
    shutil.copy(tmp_path / "v.mp4", tmp_path / "out" / "v.mp4")
    assert main([*command, f"{tmp_path}/out"]) == 2
    assert "choose another name" in capsys.readouterr().err and (tmp_path / "out" / "v.mp4").read_bytes() == before
    (tmp_path / "out" / "v.mp4").unlink()
    for _ in range(2):  # its own files are replaced
        assert main([*command, f"{tmp_path}/out"]) == 0


def test_reconstruct_takes_a_proxy_and_a_position(folder, tmp_path):
    video = str(folder / "clips" / "v0.mkv")
    arguments = ["--checkpoint", str(folder / "proxy"), "--out", str(tmp_path), "--position", "first"]
    assert main(["reconstruct", video, *arguments]) == 0
    facts = json.loads((tmp_path / "v0.json").read_text())
    assert facts["grid"] == [3, 4, 4] and facts["codes"] == 32 and facts["words"] == {}
    expected = load_tokenizer(folder / "proxy").encode(read_clip(video, FRAMES, SIZE, position="first")[None])
    assert torch.equal(load_file(tmp_path / "v0.safetensors")["ids"], expected)


def test_reconstruct_names_a_missing_video(folder, tmp_path, capsys):
    missing = str(tmp_path / "none.mp4")
    assert main(["reconstruct", missing, "--checkpoint", str(folder / "tok"), "--out", str(tmp_path)]) == 2
    assert "none.mp4" in capsys.readouterr().err


def test_unique_names():
    assert unique_names(["a/x.mp4", "b/x.avi", "y.mkv"]) == ["x-1", "x-2", "y"]
    assert unique_names(["x.mp4", "x-1.mp4", "x.avi"]) == ["x-2", "x-1", "x-3"]


def test_autocast_is_the_protocols(folder):
    """bfloat16 arithmetic of the tokenizer changes the pixels."""
    tokenizer, video = load_tokenizer(folder / "proxy"), clips(2)
    outputs = {
        name: next(reconstructed(batches(video, 2), tokenizer, RELEASE.filled(autocast=name)))["fake"]
        for name in ("float32", "bfloat16")
    }
    assert torch.equal(outputs["float32"], round_trip(tokenizer, video).video)
    assert not torch.equal(outputs["float32"], outputs["bfloat16"])
