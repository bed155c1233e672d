"""Fitting frames of any size into a tokenizer's, and back."""

import pytest
import torch

from sweettok.data.reader import read_clip
from sweettok.data.resize import RESIZES, Box, Fit, center, resize
from sweettok.data.writer import write_video

SIZES = [(48, 64), (64, 48), (32, 32), (31, 57), (20, 100), (7, 5), (240, 320)]


def waves(frames: int, height: int, width: int) -> torch.Tensor:
    """Smooth uint8 (3, T, H, W)."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y / height, x / width
    channels = [torch.sin(4 * x + 0.3 * t), torch.sin(3 * y - 0.2 * t), torch.cos(2 * (x + y))]
    return ((torch.stack(channels) * 0.4 + 0.5) * 255).to(torch.uint8)


@pytest.mark.parametrize("policy", RESIZES)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.bfloat16])
def test_frames_of_the_size_stay_as_they_are(policy, kind):
    video = torch.randint(0, 256, (3, 4, 32, 40), generator=torch.Generator().manual_seed(0)).to(kind)
    fit = Fit(policy, (32, 40), (32, 40))
    assert torch.equal(fit.apply(video), video) and torch.equal(fit.undo(video), video)
    assert fit.seen == Box(0, 0, 32, 40) and fit.corner == (0, 0)


@pytest.mark.parametrize("policy", RESIZES)
@pytest.mark.parametrize("source", SIZES)
def test_sizes_and_types(policy, source):
    fit = Fit(policy, source, (32, 32))
    for kind in (torch.uint8, torch.float32):
        fitted = fit.apply(torch.zeros(2, 3, *source, dtype=kind))
        assert fitted.shape == (2, 3, 32, 32) and fitted.dtype == kind
        undone = fit.undo(fitted)
        assert undone.shape == (2, 3, fit.seen.height, fit.seen.width) and undone.dtype == kind
    assert fit.seen == Box(0, 0, *source) or policy == "crop"


def test_crop_keeps_the_middle_and_says_which_part():
    fit = Fit("crop", (48, 96), (32, 32))
    assert (fit.scaled, fit.seen, fit.corner) == ((32, 64), Box(0, 24, 48, 48), (0, -16))
    video = waves(2, 48, 96)
    middle = video[..., 24:72]
    assert (fit.undo(fit.apply(video)).int() - middle.int()).abs().float().mean() < 1.5
    assert Fit("crop", (96, 48), (32, 32)).seen == Box(24, 0, 48, 48)
    assert Fit("crop", (240, 320), (64, 64)).seen == Box(0, 40, 240, 240)  # though scaled to 85 columns, not 85.3


def test_pad_keeps_the_whole_frame_on_black():
    fit = Fit("pad", (48, 96), (32, 32))
    assert (fit.scaled, fit.corner) == ((16, 32), (8, 0))
    for video, black in ((waves(2, 48, 96), 0), (waves(2, 48, 96) / 255 - 0.5, -0.5)):
        fitted = fit.apply(video)
        assert (fitted[..., :8, :] == black).all() and (fitted[..., 24:, :] == black).all()
        assert torch.equal(fitted[..., 8:24, :], resize(video, (16, 32)))
        scale = 255 if black else 1
        assert ((fit.undo(fitted).float() - video.float()) * scale).abs().mean() < 1.5


def test_stretch_ignores_the_aspect():
    fit = Fit("stretch", (48, 96), (32, 32))
    video = waves(2, 48, 96)
    assert fit.scaled == (32, 32)
    assert torch.equal(fit.apply(video), resize(video, (32, 32)))
    assert (fit.undo(fit.apply(video)).int() - video.int()).abs().float().mean() < 1.5


def test_resizing_rounds_and_averages():
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    small = resize(checks.to(torch.uint8)[None], (16, 16))
    assert ((small.int() - 127).abs() <= 2).all()
    assert torch.equal(resize(torch.full((3, 9, 7), 200, dtype=torch.uint8), (33, 31)), torch.full((3, 33, 31), 200))


@pytest.mark.parametrize(("source", "size"), [((48, 97), (32, 32)), ((61, 40), (32, 24)), ((30, 40), (64, 32))])
def test_cropping_is_that_of_the_reader(tmp_path, source, size):
    """What the decoder scales, `center` crops to what `read_clip` gives."""
    write_video(tmp_path / "clip.mkv", waves(2, *source), 10, lossless=True)
    fit = Fit("crop", source, size)
    placed = center(read_clip(tmp_path / "clip.mkv", 2, fit.scaled), size)
    assert torch.equal(placed, read_clip(tmp_path / "clip.mkv", 2, size, resize="crop"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fill", (4, 4), (4, 4)), "resize must be one of stretch, crop, pad; got 'fill'"),
        (("crop", (0, 4), (4, 4)), r"source must be \(height, width\) in whole pixels; got \(0, 4\)"),
        (("crop", (4, 4), (4, 4.5)), "size must be"),
        (("crop", (4, 4, 4), (4, 4)), "source must be"),
    ],
)
def test_bad_fits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Fit(*arguments)


def test_bad_frames_are_refused():
    fit = Fit("crop", (48, 64), (32, 32))
    with pytest.raises(ValueError, match=r"expected frames of 48x64 pixels, .* got \(3, 2, 32, 32\)"):
        fit.apply(torch.zeros(3, 2, 32, 32))
    with pytest.raises(ValueError, match="got list"):
        fit.undo([1])
    with pytest.raises(ValueError, match="uint8 or floating point, got torch.int64"):
        fit.undo(torch.zeros(32, 32, dtype=torch.long))
