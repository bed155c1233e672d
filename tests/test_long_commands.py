"""Long videos by command: `sweettok encode`, `sweettok decode` and `sweettok eval reconstruct`."""

import json

import pytest
import tiny
import torch

from sweettok.cli.main import main
from sweettok.data.reader import probe, read_clip
from sweettok.data.writer import TITLE, write_video
from sweettok.eval import visual
from sweettok.eval.metrics import frame_psnr, psnr
from sweettok.pixels import to_uint8
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import LongTokens
from sweettok.video.seams import seam_metric

LENGTH = 9  # of the tiny tokenizer's clips, of 16x16


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A tokenizer and a video of 20 frames."""
    folder = tmp_path_factory.mktemp("long")
    tokenizer.save_pretrained(folder / "tok")
    video = to_uint8(tiny.clip(num_frames=20, height=24, width=40))[0]
    write_video(folder / "video.mkv", video, 12.5, lossless=True)
    return folder


def test_commands_there_and_back(tokenizer, folder, tmp_path, capsys, fresh_accelerator):
    ids, video, checkpoint = str(tmp_path / "ids.safetensors"), str(tmp_path / "out.mp4"), str(folder / "tok")
    assert main(["encode", str(folder / "video.mkv"), "--checkpoint", checkpoint, "--out", ids, "--resize", "pad"]) == 0
    assert "ids.safetensors: 20 frames, 1.60 s, 3 clips, 180 ids, 593 bits" in capsys.readouterr().out
    assert torch.equal(LongTokens.load(ids).ids, tokenizer.encode_long(folder / "video.mkv", resize="pad").ids)
    assert main(["decode", ids, "--checkpoint", checkpoint, "--out", video]) == 0
    assert (probe(video).num_frames, probe(video).height, probe(video).width) == (20, 24, 40)
    assert main(["decode", ids, "--checkpoint", checkpoint, "--out", video, "--tokenizer-size"]) == 0
    assert (probe(video).height, probe(video).width) == (16, 16)


def test_outputs_replace_neither_inputs_nor_other_files(folder, tmp_path, capsys, fresh_accelerator):
    tiny.tokenizer().save_pretrained(tmp_path / "tok")
    (tmp_path / "video.mkv").write_bytes((folder / "video.mkv").read_bytes())
    other = tmp_path / "other.safetensors"
    other.write_bytes((tmp_path / "tok" / "model.safetensors").read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    video, checkpoint = str(tmp_path / "video.mkv"), ("--checkpoint", str(tmp_path / "tok"))
    for out in ("tok/model.safetensors", "tok/../tok/new.safetensors", "other.safetensors"):
        assert main(["encode", video, *checkpoint, "--out", str(tmp_path / out)]) == 2
    ids = str(tmp_path / "ids.safetensors")
    assert main(["encode", video, *checkpoint, "--out", ids]) == main(["encode", video, *checkpoint, "--out", ids]) == 0
    (tmp_path / "link.mkv").symlink_to(tmp_path / "video.mkv")
    (tmp_path / "text.mp4").write_text("notes")
    before[tmp_path / "text.mp4"] = b"notes"
    for out in ("tok/new.mp4", "text.mp4"):
        assert main(["decode", ids, *checkpoint, "--out", str(tmp_path / out)]) == 2
    for out in ("video.mkv", "link.mkv"):
        with pytest.raises(ValueError, match="is an input and would be overwritten"):
            SweetTok.from_pretrained(tmp_path / "tok").reconstruct(video, tmp_path / out)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not (tmp_path / "tok" / "new.safetensors").exists() and not (tmp_path / "tok" / "new.mp4").exists()


def test_reconstructing_with_another_aspect(tokenizer, folder, tmp_path, fresh_accelerator):
    """One clip, and the whole video, whose first frames are of the same clip."""
    clip = tokenizer.read(folder / "video.mkv", resize="pad", position="first")
    expected = frame_psnr(clip, to_uint8(tokenizer.decode(tokenizer.encode(clip).ids)))[0].tolist()
    for whole, frames in ((False, LENGTH), (True, LENGTH - 1)):
        options = {"resize": "pad", "whole": whole} | ({} if whole else {"position": "first"})
        (facts,) = visual.reconstruct([folder / "video.mkv"], folder / "tok", tmp_path, **options)
        assert (
            facts["psnr_per_frame"][:frames] == pytest.approx(expected[:frames])
            and facts["preprocessing"]["resize"] == "pad"
        )
    assert LongTokens.load(tmp_path / "video.safetensors").fit.policy == "pad"


def test_reconstructing_a_frame_by_a_tokenizer_of_images(folder, tmp_path, fresh_accelerator):
    tiny.fill(SweetTok(tiny.tokenizer_config(), tiny.prior().spatial)).save_pretrained(tmp_path / "images")
    (facts,) = visual.reconstruct([folder / "video.mkv"], tmp_path / "images", tmp_path)
    assert facts["clip"]["frames"] == 1 and facts["words"]["temporal"] == [] and len(facts["psnr_per_frame"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "none.mp4", "--out", "a.safetensors"], "none.mp4: no such file"),
        (["encode", "none.mp4", "--out", "a.pt"], "a.pt: expected a file name that ends in .safetensors"),
        (["decode", "none.safetensors", "--out", "a.mp4"], "no none.safetensors"),
        (["decode", "none.safetensors", "--out", "a.gif"], "a.gif: expected a file name that ends in .mp4 or"),
        (["decode", "none.safetensors", "--out", "dir.mp4"], "dir.mp4 is a folder"),
    ],
)
def test_commands_tell_what_is_wrong(folder, tmp_path, monkeypatch, capsys, fresh_accelerator, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir.mp4").mkdir()
    assert main([*arguments, "--checkpoint", str(folder / "tok")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_reconstructing_a_whole_video(tokenizer, folder, tmp_path, fresh_accelerator):
    (facts,) = visual.reconstruct([folder / "video.mkv"], folder / "tok", tmp_path, whole=True)
    tokens = LongTokens.load(tmp_path / "video.safetensors")
    clip = read_clip(folder / "video.mkv", 20, 16)
    shown = to_uint8(tokenizer.decode_long(tokens, undo_resize=False))
    assert facts["psnr"] == pytest.approx(psnr(clip[None], shown[None]).item()) and len(facts["psnr_per_frame"]) == 20
    assert facts["seams"] == pytest.approx(seam_metric(shown, tokens.chunks, clip))
    assert facts["clips"] == 3 and facts["chunks"] == {"num_frames": 20, "length": 9, "overlap": 1}
    assert json.loads((tmp_path / "video.json").read_text())["seams"] == facts["seams"]
    info = probe(tmp_path / "video.mp4")
    assert (info.num_frames, info.height, info.width, info.fps) == (20, TITLE + 192, 3 * 192, 12.5)
    assert (tmp_path / "video.png").is_file()


def test_whole_videos_are_for_tokenizers_of_words(folder, tmp_path, fresh_accelerator):
    tiny.proxy().save_pretrained(tmp_path / "proxy")
    with pytest.raises(ValueError, match="holds a ProxyTokenizer: whole videos are for a SweetTok"):
        next(visual.reconstruct([folder / "video.mkv"], tmp_path / "proxy", tmp_path, whole=True))
