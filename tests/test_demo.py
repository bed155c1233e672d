"""What the page of `sweettok demo` computes and shows, without Gradio: clips and limits, results, messages."""

import base64
import re
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
import torch

from sweettok.cli.main import main
from sweettok.data.backends import ClipError
from sweettok.data.reader import read_clip
from sweettok.data.synthetic import CLASSES
from sweettok.data.writer import enlarge, write_video
from sweettok.demo import html
from sweettok.demo.clips import Limits, examples, read_upload
from sweettok.demo.models import Models, analyse, load, sample, swap
from sweettok.demo.page import Page, answered
from sweettok.eval.metrics import psnr
from sweettok.generator.config import GeneratorConfig
from sweettok.generator.model import Generator
from sweettok.pixels import to_uint8

LIMITS = Limits(megabytes=1, frames=30, width=64, height=48)


def make_models() -> Models:
    """A tokenizer and a generator with two classes and guidance."""
    tokenizer = tiny.tokenizer()
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "layout": tokenizer.layout, "num_classes": 2}
    config = GeneratorConfig(**sizes, tokenizer_hash=tokenizer.ids_hash())
    return Models(tokenizer, tiny.fill(Generator(config, ("rise", "fall"))))


@pytest.fixture(scope="module")
def models():
    return make_models()


@pytest.fixture(scope="module")
def clips():
    return [to_uint8(tiny.clip(seed))[0] for seed in (0, 1)]


def write_sound(path: Path, cover: bool = False) -> None:
    """An MP4 of silence, with a cover picture or without."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        if cover:
            picture = file.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 16, 16, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux([*stream.encode(frame), *stream.encode()])
        if cover:
            shown = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), dtype=np.uint8), format="rgb24")
            file.mux([*picture.encode(shown.reformat(format="yuvj420p")), *picture.encode()])


# ------------------------------------------------------------------------------------------------------------- clips


def test_examples_are_synthetic_clips_of_every_class(models):
    found = examples(models.tokenizer)
    assert [clip.name for clip in found] == list(CLASSES)
    assert {(clip.video.shape, clip.video.dtype) for clip in found} == {((3, 9, 16, 16), torch.uint8)}
    assert all(clip.about.startswith(("Synthetic clip: a ", "Synthetic clip: an ")) for clip in found)


def test_examples_from_files_are_what_encode_reads(models, tmp_path):
    for number in range(20):
        write_video(tmp_path / f"clips/{number:02}.mkv", to_uint8(tiny.clip(number, 11))[0], 8, lossless=True)
    write_video(tmp_path / "alone.mkv", to_uint8(tiny.clip(30))[0], 8, lossless=True)
    found = examples(models.tokenizer, [tmp_path / "clips", tmp_path / "alone.mkv"])
    names = [clip.name for clip in found]
    assert len(names) == len(set(names)) == 16 and names == sorted(names)
    assert found[0].video.equal(models.tokenizer.read(tmp_path / "clips/00.mkv")[0])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no videos in .*none"):
        examples(models.tokenizer, [tmp_path / "none"])


def test_an_upload_is_read_as_encode_reads_it(models, tmp_path):
    path = tmp_path / "wide.mkv"
    write_video(path, to_uint8(tiny.clip(height=24, width=40, num_frames=20))[0], 8, lossless=True)
    clip = read_upload(path, models.tokenizer, LIMITS)
    assert clip.video.equal(models.tokenizer.read(path)[0])
    assert clip.about == "wide.mkv: 9 of its 20 frames, from the middle, resized from 40x24 (stretch)"
    write_video(path, to_uint8(tiny.clip(num_frames=4))[0], 8, lossless=True)
    clip = read_upload(path, models.tokenizer, LIMITS)
    assert clip.about == "wide.mkv: all of its 4 frames, the last one repeated" and clip.video.shape[1] == 9


def write_uploads(folder: Path) -> None:
    """Files that are refused."""
    (folder / "notes.mp4").write_text("Not a video, in spite of its name.\n" * 20)
    (folder / "empty.mp4").touch()
    (folder / "still.png").write_bytes(b"\x89PNG")
    write_sound(folder / "sound.mp4")
    write_sound(folder / "album.mp4", cover=True)
    frames = torch.zeros(3, 9, 16, 16, dtype=torch.uint8)
    write_video(folder / "clip.mp4", frames, 8)
    write_video(folder / "long.mp4", frames[:, :1].expand(-1, 31, -1, -1), 8)
    write_video(folder / "wide.mp4", frames.repeat(1, 1, 1, 5), 8)
    write_video(folder / "tall.mp4", frames.repeat(1, 1, 4, 4), 8)
    content = (folder / "clip.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "heavy.mp4").write_bytes(content + bytes(1_600_000))
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n"
    (folder / "list.m3u8").write_text(text)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.mp4", "not a video that can be read"),
        ("cut.mp4", "not a video that can be read"),
        ("list.m3u8", "not a video that can be read"),
        ("empty.mp4", "the file is empty"),
        ("still.png", "a picture; upload a video"),
        ("sound.mp4", "sound without video"),
        ("album.mp4", "sound without video"),
        ("long.mp4", "31 frames; at most 30 are read"),
        ("wide.mp4", "frames of 80x16 pixels; at most 64x48 are read"),
        ("tall.mp4", "frames of 64x64 pixels; at most 64x48 are read"),
        ("heavy.mp4", "2 MB; at most 1 MB are read"),
    ],
)
def test_bad_uploads_are_refused_in_one_line(models, tmp_path, name, reason):
    write_uploads(tmp_path)
    assert read_upload(tmp_path / "clip.mp4", models.tokenizer, LIMITS).video.shape == (3, 9, 16, 16)
    with pytest.raises(ClipError, match=f"^{name}: {re.escape(reason)}") as refused:
        read_upload(tmp_path / name, models.tokenizer, LIMITS)
    assert str(tmp_path) not in str(refused.value) and "\n" not in str(refused.value)


# ----------------------------------------------------------------------------------------------------------- results


def test_analysis_is_encoding_and_decoding(models, clips):
    tokenizer, clip = models.tokenizer, clips[0]
    result = analyse(tokenizer, clip)
    ids = tokenizer.encode(clip[None]).ids
    decoded = to_uint8(tokenizer.decode(ids))
    assert result.output.ids.equal(ids) and result.reconstruction.equal(decoded[0]) and result.original.equal(clip)
    assert result.psnr == psnr(clip[None], decoded).item() and result.bits == tokenizer.layout.bits
    assert result.bits_per_pixel == result.bits / (9 * 16 * 16)


def test_a_swap_exchanges_the_temporal_ids(models, clips):
    tokenizer = models.tokenizer
    first, second = (tokenizer.encode(clip[None]).ids for clip in clips)
    cut = 4 * 3  # spatial queries, each with two adjectives and a noun
    assert not first[:, :cut].equal(second[:, :cut]) and not first[:, cut:].equal(second[:, cut:])
    expected = [torch.cat((a[:, :cut], b[:, cut:]), dim=1) for a, b in ((first, second), (second, first))]
    mixed = swap(tokenizer, *clips)
    assert mixed.equal(to_uint8(tokenizer.decode(torch.cat(expected))))
    same = swap(tokenizer, clips[0], clips[0])
    assert same[0].equal(same[1]) and same[0].equal(analyse(tokenizer, clips[0]).reconstruction)


def test_samples_are_of_the_class_and_the_seed(models):
    words = []
    drawn = sample(models, "fall", count=2, seed=3, progress=words.append, cfg_scale=2.0, top_p=0.8)
    ids = models.generator.sample([1, 1], seed=3, cfg_scale=2.0, top_p=0.8)
    assert drawn.equal(to_uint8(models.tokenizer.decode(ids))) and sum(words) == models.tokenizer.layout.length
    assert not drawn.equal(sample(models, "fall", count=2, seed=4, cfg_scale=2.0, top_p=0.8))
    with pytest.raises(ValueError, match="no class 'spin'; there are rise, fall"):
        sample(models, "spin")
    with pytest.raises(ValueError, match="there is no generator"):
        sample(Models(models.tokenizer))


def test_models_that_do_not_fit_are_refused(models, tmp_path):
    models.tokenizer.save_pretrained(tmp_path / "tokenizer")
    models.generator.save_pretrained(tmp_path / "generator")
    loaded = load(tmp_path / "tokenizer", tmp_path / "generator")
    assert loaded.class_names == ["rise", "fall"] and loaded.guidance
    tiny.tokenizer(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="writes ids of the tokenizer"):
        load(tmp_path / "other", tmp_path / "generator")
    tiny.proxy().save_pretrained(tmp_path / "proxy")
    with pytest.raises(ValueError, match="holds 'ProxyTokenizer', expected 'SweetTok'"):
        load(tmp_path / "proxy")


# -------------------------------------------------------------------------------------------------------------- page


def video_of(text: str, path: Path) -> torch.Tensor:
    """The first video of a page."""
    path.write_bytes(base64.b64decode(re.search(r"data:video/mp4;base64,([^\"]+)", text)[1]))
    return read_clip(path, 9, None)


def test_the_page_shows_numbers_words_and_a_video(models, clips, tmp_path):
    page = Page(models, examples(models.tokenizer))
    top, words = page.reconstruct(5, None)
    result = analyse(models.tokenizer, page.examples[5].video)
    assert f"{result.psnr:.1f} dB" in top and "0.086" in top and "198" in top  # bits per pixel, bits
    for kind, entries in result.output.summary().items():
        assert f"{len(entries)} different {kind}" in words and f"<td>{entries[0].word}<" in words
    shown = video_of(top, tmp_path / "top.mp4").float()
    assert shown.shape == (3, 9, 384, 384 + html.GAP + 384)
    for left, clip in ((0, result.original), (384 + html.GAP, result.reconstruction)):
        expected = enlarge(clip, html.LEAST).float()
        assert (shown[..., left : left + 384] - expected).abs().mean() < 6  # H.264, with chroma of half the size
    assert video_of(words, tmp_path / "words.mp4").shape[2] == 224  # four cells of 56 pixels


def test_enlarging_keeps_pixels_and_small_factors(clips):
    large = enlarge(clips[0], 60, "nearest")
    assert large.shape == (3, 9, 64, 64) and large[:, :, ::4, 3::4].equal(clips[0])
    assert enlarge(clips[0], 16) is clips[0]


def test_names_are_text_not_markup():
    for shown in (html.message("<b>&"), html.hint("<b>&")):
        assert "&lt;b&gt;&amp;" in shown and "<b>" not in shown


def test_mistakes_become_one_line(models, tmp_path):
    page = Page(models, examples(models.tokenizer), LIMITS)
    write_uploads(tmp_path)
    line, words = answered(page.reconstruct, results=2)(3, str(tmp_path / "notes.mp4"))
    assert "notes.mp4: not a video" in line and "alert" in line and words == ""
    assert "choose an example or upload a clip first" in answered(page.swap)(None, None, 2, None)
    assert "the seed must be a whole number" in answered(page.generate)("rise", 0.5, 1, 0.9, print)
    with pytest.raises(KeyError):
        answered({}.__getitem__)("a bug")


def test_without_gradio_the_command_says_what_to_install(models, tmp_path, monkeypatch, capsys):
    models.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--checkpoint", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: the page needs Gradio: pip install 'sweettok[demo]'\n"
