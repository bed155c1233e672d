import warnings

import numpy as np
import pytest
import torch

from sweettok.pixels import check_video, to_float, to_uint8


def test_bytes_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(levels)
    assert floats.dtype == torch.float32
    torch.testing.assert_close(floats, torch.tensor([i / 255 - 0.5 for i in range(256)]), rtol=0, atol=1e-7)
    assert floats[0] == -0.5 and floats[255] == 0.5
    assert torch.equal(to_uint8(floats), levels)
    assert torch.equal(levels, torch.arange(256, dtype=torch.uint8)), "the input was changed"


def test_rounding_and_clamping():
    x = torch.tensor([-2.0, -0.5, (10.4 / 255) - 0.5, (10.6 / 255) - 0.5, 0.5, 7.0])
    kept = x.clone()
    assert to_uint8(x).tolist() == [0, 0, 10, 11, 255, 255]
    assert to_uint8(x, rounding="floor").tolist() == [0, 0, 10, 10, 255, 255]
    assert to_uint8(x.bfloat16()).dtype == torch.uint8
    assert torch.equal(x, kept), "the input was changed"
    with pytest.raises(ValueError, match="'nearest' or 'floor', got 'up'"):
        to_uint8(x, rounding="up")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_to_float_takes_bytes_only(dtype):
    with pytest.raises(ValueError, match=f"expects uint8 pixels, got {dtype}"):
        to_float(torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("check_range", [True, False])
def test_check_video_gives_float32(dtype, check_range):
    video = torch.zeros(2, 3, 5, 4, 4, dtype=dtype)
    checked = check_video(video, check_range=check_range)
    assert checked.dtype == torch.float32 and checked.shape == video.shape
    assert torch.all(checked == (-0.5 if dtype == torch.uint8 else 0))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([[0.0]], "must be a torch tensor, got list"),
        (np.zeros((1, 3, 5, 4, 4)), "got ndarray: give torch.from_numpy"),
        (
            torch.zeros(3, 5, 4, 4),
            r"\(batch, 3, frames, height, width\), got \(3, 5, 4, 4\): give video.unsqueeze\(0\)$",
        ),
        (torch.zeros(5, 4, 4, 3), r"got \(5, 4, 4, 3\): give video.permute\(3, 0, 1, 2\).unsqueeze\(0\)$"),
        (torch.zeros(1, 5, 3, 4, 4), r"got \(1, 5, 3, 4, 4\): give video.transpose\(1, 2\)$"),
        (torch.zeros(1, 5, 4, 4, 3), r"got \(1, 5, 4, 4, 3\): give video.permute\(0, 4, 1, 2, 3\)$"),
        (torch.zeros(5, 4, 4), r"got \(5, 4, 4\)$"),
        (torch.zeros(0, 3, 5, 4, 4), r"no pixels: its shape is \(0, 3, 5, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4, 4), r"no pixels: its shape is \(1, 3, 0, 4, 4\)"),
        (torch.zeros(1, 3, 5, 4, 4).long(), "must be uint8 or floating point, got torch.int64"),
    ],
)
@pytest.mark.parametrize("check_range", [True, False])
def test_check_video_refuses(video, message, check_range):
    with pytest.raises(ValueError, match=message):
        check_video(video, check_range=check_range)


@pytest.mark.parametrize("value", [0.6, -0.502, 1.0, float("nan"), float("inf"), -float("inf")])
def test_check_video_refuses_values_out_of_range(value):
    video = torch.zeros(1, 3, 5, 4, 4)
    video[0, 1, 2, 3, 0] = value
    with pytest.raises(ValueError, match=r"must lie in \[-0.5, 0.5\], got .* give uint8 frames, or subtract 0.5"):
        check_video(video)


def test_check_video_forgives_rounding():
    video = torch.full((1, 3, 1, 2, 2), 0.5005)
    assert torch.equal(check_video(video), video)


def test_check_video_warns_of_black_at_zero():
    video = torch.linspace(0, 0.4, 3 * 5 * 16).view(1, 3, 5, 4, 4)
    with pytest.warns(UserWarning, match=r"in \[0, 0.4\]: if black is 0 in it, subtract 0.5"):
        assert torch.equal(check_video(video), video)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_video(video - 0.1)
        check_video(torch.full((1, 3, 5, 4, 4), 0.2))
        check_video(video, check_range=False)
