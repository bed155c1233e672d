"""Wrong ranges, channel orders, speeds and directions of time are refused or seen in the report."""

import re

import pytest
import torch

from sweettok.eval.checks import order_errors, order_notes, pixel_facts, pixel_notes, pixel_summary


def moving(count=3, speed=1, seed=0):
    """Bright red and dark blue clips, uint8 (N, 3, T, H, W), that drift to the right and grow lighter."""
    generator = torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(count, 3, 8, 1, generator=generator)
    wave = 0.5 + 0.5 * torch.sin(torch.arange(24) * 6.28 / 24 + phase)
    pattern = wave * torch.tensor([120, 80, 40]).view(3, 1, 1)
    frames = [pattern.roll(speed * t, -1) + 2 * t * speed for t in range(9)]
    return torch.stack(frames, dim=2).add(torch.tensor([80, 40, 10]).view(3, 1, 1, 1)).to(torch.uint8)


def summary(video):
    return pixel_summary(pixel_facts(video.movedim(1, -1)))


def test_what_is_counted():
    video = torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8)
    video[0, 0], video[0, 1, 1], video[1, 2, :2] = 10, 200, 40
    found = summary(video)
    assert found["min"] == 0 and found["max"] == 200
    assert found["mean_rgb"] == [5, 200 / 8, 10]
    assert found["motion"] == pytest.approx((200 + 200 + 40) / (2 * 3 * 3)) and found["clips_ending_black"] == 1
    parts = [facts for clip in video for facts in pixel_facts(clip[None].movedim(1, -1))]
    assert pixel_summary(parts) == found == summary(video.float())
    assert summary(video[:, :, :1])["motion"] == 0


def test_nothing_is_suspected_of_good_clips():
    assert pixel_notes(summary(moving()), summary(moving(seed=1))) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (moving(seed=1).flip(1), "with red and blue exchanged: are the fake clips BGR"),
        (moving(seed=1) // 255, "differ by .* grey levels: check their range"),  # as [0, 1] cut down to bytes
        (moving(seed=1) // 2 + 127, "differ by .* grey levels: check their range"),  # as [0, 1] for [-1, 1]
        (moving(seed=1, speed=4), "fake clips change [34].[0-9] times as much"),
        (moving(seed=1)[:, :, :1].expand(-1, -1, 9, -1, -1), "real clips change [0-9.]+ times as much"),
        (moving(seed=1) * (torch.arange(9) < 6).view(9, 1, 1), "3 fake clips end in"),
    ],
)
def test_wrong_sets_are_noticed(wrong, message):
    notes = pixel_notes(summary(moving()), summary(wrong))
    assert any(re.search(message, note) for note in notes), notes


def test_order_of_channels_and_frames_is_seen_in_pairs():
    real = moving()
    noisy = (real.int() + torch.randint(-20, 20, real.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 255)
    noisy = noisy.to(torch.uint8)
    wrong = {"red and blue exchanged": noisy.flip(1), "is time reversed": noisy.flip(2), None: noisy}
    for message, fake in wrong.items():
        notes = order_notes(order_errors(real, fake))
        assert (message is None and not notes) or message in notes[0]
