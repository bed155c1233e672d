"""PSNR, SSIM, intervals and codebook usage."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from sweettok.eval.metrics import compare, frame_psnr, mean_with_interval, motion_psnr, psnr, ssim
from sweettok.eval.tokenizers import UsageCounter, merge_usage


def noise(seed, shape=(2, 3, 4, 20, 24)):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_taken_over_the_whole_clip():
    real = torch.full((2, 3, 4, 16, 16), 100, dtype=torch.uint8)
    fake = real.clone()
    fake[0] += 10  # squared error 100 everywhere
    fake[1, :, 0] += 20  # 400 in one frame of four
    expected = 10 * math.log10(255**2 / 100)
    assert psnr(real, fake).tolist() == pytest.approx([expected, expected])
    frames = frame_psnr(real, fake)
    assert frames.shape == (2, 4)
    assert frames[1].tolist() == pytest.approx([10 * math.log10(255**2 / 400), 100, 100, 100])


def test_bytes_do_not_wrap_around():
    zeros, ones = torch.zeros(1, 3, 1, 12, 12, dtype=torch.uint8), torch.full((1, 3, 1, 12, 12), 255, dtype=torch.uint8)
    assert psnr(zeros, ones).item() == psnr(ones, zeros).item() == pytest.approx(0, abs=1e-9)
    assert psnr(ones, ones).item() == 100


def reference_ssim(x, y):
    """One frame and channel, straight from the formula."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(image):
        return convolve2d(image, window, mode="valid")

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim_follows_the_formula():
    real = noise(0)
    fake = ((real.int() + noise(1).int()) // 2).to(torch.uint8)
    frames = [video.flatten(1, 2).double().numpy() for video in (real, fake)]
    expected = [
        np.mean([reference_ssim(a, b) for a, b in zip(r, f, strict=True)]) for r, f in zip(*frames, strict=True)
    ]
    np.testing.assert_allclose(ssim(real, fake).numpy(), expected, atol=1e-5)
    assert ssim(real, real).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_another_implementation_agrees():
    """torchmetrics also averages windows that reach over the border, into mirrored pixels: they are cut off here."""
    image = pytest.importorskip("torchmetrics.functional.image")
    real = noise(0, (2, 3, 4, 32, 40))
    fake = ((3 * real.int() + noise(1, (2, 3, 4, 32, 40)).int()) // 4).to(torch.uint8)
    for i in range(2):
        frames = [video[i].movedim(1, 0).double() for video in (fake, real)]
        options = {"data_range": 255.0, "sigma": 1.5, "kernel_size": 11, "return_full_image": True}
        _, places = image.structural_similarity_index_measure(*frames, **options)
        whole = places[..., 5:-5, 5:-5].mean().item()
        assert ssim(real, fake)[i].item() == pytest.approx(whole, abs=1e-5)
        theirs = image.peak_signal_noise_ratio(*frames, data_range=255.0)
        assert psnr(real, fake)[i].item() == pytest.approx(theirs.item(), abs=1e-4)


def test_motion_is_what_changes_from_frame_to_frame():
    real = noise(0)
    lighter = (real // 2) + 100
    flicker = (real // 2).clone()
    flicker[:, :, 1::2] += 100  # every second frame lighter: each of the three steps is off by 100
    assert motion_psnr(real // 2, lighter).tolist() == [100, 100]
    expected = 10 * math.log10(255**2 / 100**2)
    assert motion_psnr(real // 2, flicker).tolist() == pytest.approx([expected, expected])
    still = real[:, :, :1].expand(-1, -1, 4, -1, -1)
    change = (real[:, :, 1:].double() - real[:, :, :-1].double()).square().mean((1, 2, 3, 4))
    assert motion_psnr(real, still).tolist() == pytest.approx((10 * torch.log10(255**2 / change)).tolist())
    assert motion_psnr(real[:, :, :1], lighter[:, :, :1]).tolist() == [100, 100]


def test_ssim_of_flat_frames():
    """No variance: only the luminance term is left."""
    low, high = (torch.full((1, 3, 1, 11, 11), level, dtype=torch.uint8) for level in (50, 200))
    c1 = (0.01 * 255) ** 2
    assert ssim(low, high).item() == pytest.approx((2 * 50 * 200 + c1) / (50**2 + 200**2 + c1), abs=1e-4)


@pytest.mark.parametrize("metric", [psnr, frame_psnr, motion_psnr, ssim])
def test_metrics_refuse_what_does_not_fit(metric):
    video = noise(0)
    with pytest.raises(ValueError, match=r"fake must be uint8 \(B, 3, T, H, W\), got torch.float32"):
        metric(video, video.float())
    with pytest.raises(ValueError, match="differ in shape"):
        metric(video, video[:1])
    with pytest.raises(ValueError, match="real must be uint8"):
        metric(video[0], video[0])


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="at least 11x11, got 8x24"):
        ssim(noise(0)[..., :8, :], noise(0)[..., :8, :])


def test_interval():
    result = mean_with_interval([1.0, 2.0, 3.0, 4.0])
    assert result["mean"] == 2.5 and result["count"] == 4
    assert result["std"] == pytest.approx(np.std([1, 2, 3, 4], ddof=1))
    assert result["interval95"] == pytest.approx(1.96 * result["std"] / 2)
    assert mean_with_interval([3.0]) == {"mean": 3.0, "std": None, "interval95": None, "count": 1}
    with pytest.raises(ValueError, match="no values"):
        mean_with_interval([])


def test_usage_counts_exactly():
    counter = UsageCounter({"noun": 4, "verb": 3})
    counter.update({"noun": torch.tensor([[0, 0], [1, 1]]), "verb": torch.tensor([2, 2, 2])})
    other = UsageCounter({"noun": 4, "verb": 3})
    other.update({"noun": torch.tensor([[[3, 3]]])})
    both = merge_usage([counter, None, other]).summary()
    expected = {"words": 4, "ids": 6, "used": 3, "used_fraction": 0.75, "dead": 1, "perplexity": pytest.approx(3)}
    assert both["noun"] == expected
    assert both["verb"]["perplexity"] == pytest.approx(1) and both["verb"]["dead"] == 2
    assert UsageCounter({"noun": 4}).summary()["noun"]["perplexity"] == 0


def test_usage_perplexity_of_uneven_use():
    counter = UsageCounter({"noun": 2})
    counter.update({"noun": torch.tensor([0, 0, 0, 1])})
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert counter.summary()["noun"]["perplexity"] == pytest.approx(math.exp(entropy))


def test_usage_refuses_unknown_lists_and_ids():
    counter = UsageCounter({"noun": 4})
    with pytest.raises(ValueError, match="noun ids must be 0..3, got 0..4"):
        counter.update({"noun": torch.tensor([0, 4])})
    with pytest.raises(ValueError, match="no word list 'verb'"):
        counter.update({"verb": torch.tensor([0])})


@pytest.mark.parametrize("cached", [1, 1 << 30])
def test_several_at_once_equal_each_alone(monkeypatch, cached):
    """However many frames are taken at a time; one frame stands for a clip that repeats it."""
    monkeypatch.setattr("sweettok.eval.metrics.CACHED", cached)
    real, fake = noise(0), noise(1)
    still = {"first": real[:, :, :1], "other": noise(2)[:, :, :1]}
    found = compare(real, {"fake": fake, **still})
    for name, other in {"fake": fake, **{name: frame.expand_as(real) for name, frame in still.items()}}.items():
        for metric, function in {"psnr": psnr, "ssim": ssim, "motion": motion_psnr}.items():
            torch.testing.assert_close(found[name][metric], function(real, other), rtol=1e-6, atol=1e-7)
