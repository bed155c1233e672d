"""The embedded video decoder: its loss, what it learns from two clips, seeds, masks, files and sizes."""

from dataclasses import replace

import pytest
import torch

from sweettok.vtok.decoder import LEAST_LEVEL, PixelFlow, PixelFlowConfig
from sweettok.vtok.flow import flow_loss, shifted

CONFIG = PixelFlowConfig(state_dim=12, dim=64, num_layers=2, num_heads=2, patch_size=4)
FRAMES, SIZE = 5, 16


def two_clips():
    """A bright bar that moves right, and one that moves down."""
    clips = torch.full((2, 3, FRAMES, SIZE, SIZE), -0.4)
    for t in range(FRAMES):
        clips[0, :, t, :, 2 * t : 2 * t + 6] = 0.4
        clips[1, :, t, 2 * t : 2 * t + 6] = 0.4
    return clips


@pytest.fixture
def random_decoder():
    """A decoder whose output depends on everything: its output layers start at zero, here they do not."""
    torch.manual_seed(0)
    decoder = PixelFlow(CONFIG).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return decoder


@pytest.fixture(scope="module")
def trained():
    """A decoder after 200 steps on two clips, its clips and their states."""
    torch.manual_seed(0)
    decoder, clips, states = PixelFlow(CONFIG), two_clips(), torch.randn(2, 6, 12)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3)
    for _ in range(200):
        optimizer.zero_grad()
        decoder.loss(clips.repeat(4, 1, 1, 1, 1), states.repeat(4, 1, 1)).backward()
        optimizer.step()
    return decoder.eval(), clips, states


def test_default_size():
    assert 1.5e6 < sum(p.numel() for p in PixelFlow(PixelFlowConfig()).parameters()) < 1.7e6


def test_loss_is_zero_for_the_exact_velocity(random_decoder, monkeypatch):
    clips, states = two_clips(), torch.randn(2, 6, 12)
    levels_seen = []

    def exact(noisy, levels, *_):
        levels_seen.append(levels)
        return (noisy - 2 * clips) / levels.view(-1, 1, 1, 1, 1)  # x - z = s (e - z)

    assert random_decoder.loss(clips, states) > 0.5
    monkeypatch.setattr(random_decoder, "forward", exact)
    assert random_decoder.loss(clips, states) < 1e-9
    assert torch.cat(levels_seen).min() >= LEAST_LEVEL


def test_loss_is_that_of_noise_minus_clip():
    clean, generator = torch.randn(3, 2, 4), torch.Generator().manual_seed(0)
    seen = {}

    def zero(noisy, levels):
        seen.update(noisy=noisy, levels=levels)
        return torch.zeros_like(noisy)

    loss = flow_loss(zero, clean, shift=7.0, generator=generator)
    share = seen["levels"].view(-1, 1, 1)
    noise = (seen["noisy"] - (1 - share) * clean) / share
    torch.testing.assert_close(loss, (noise - clean).square().mean((1, 2)))
    assert shifted(torch.tensor([0.0, 0.5, 1.0]), 7.0).tolist() == [0.0, 0.875, 1.0]


def test_learns_clips_and_their_states(trained):
    decoder, clips, states = trained
    samples = decoder.sample(states, FRAMES, SIZE)
    assert samples.shape == clips.shape and samples.abs().max() <= 0.5
    mean_frame = (clips.mean(2, keepdim=True) - clips).square().mean()
    assert (samples - clips).square().mean() < 0.5 * mean_frame
    swapped = decoder.sample(states.flip(0), FRAMES, SIZE)
    assert (swapped - clips.flip(0)).square().mean() < 0.5 * mean_frame


def test_guidance(trained):
    decoder, _, states = trained
    plain = decoder.sample(states, FRAMES, SIZE, steps=2)
    guided = decoder.sample(states, FRAMES, SIZE, steps=2, cfg_scale=2.0)
    assert (guided - plain).abs().max() > 1e-3
    same = decoder.sample(states, FRAMES, SIZE, steps=2, cfg_scale=2.0, negative=states)
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=0)


def test_samples_depend_on_seed_and_index(random_decoder):
    states = torch.randn(3, 6, 12)
    together = random_decoder.sample(states, FRAMES, SIZE, steps=3, seed=4)
    for i in range(3):
        alone = random_decoder.sample(states[i : i + 1], FRAMES, SIZE, steps=3, seed=4, indices=[i])
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=0)
    same_states = random_decoder.sample(states[:1].expand(2, -1, -1), FRAMES, SIZE, steps=3, seed=4)
    assert (same_states[0] - same_states[1]).abs().max() > 0.1
    other = random_decoder.sample(states[:1], FRAMES, SIZE, steps=3, seed=5)
    assert (other - together[:1]).abs().max() > 0.1


def test_masked_states_are_ignored(random_decoder):
    states, noisy, levels = torch.randn(2, 6, 12), torch.randn(2, 3, FRAMES, SIZE, SIZE), torch.tensor([0.3, 0.9])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    other = torch.where(mask[..., None], states, torch.full_like(states, 50.0))
    with torch.no_grad():
        masked = random_decoder(noisy, levels, states, mask)
        assert masked.equal(random_decoder(noisy, levels, other, mask))
        shorter = random_decoder(noisy[:1], levels[:1], states[:1, :4])
        torch.testing.assert_close(masked[:1], shorter, atol=1e-4, rtol=1e-4)
        assert (masked - random_decoder(noisy, levels, other)).abs().max() > 1e-3


def test_gradients_reach_the_states(random_decoder):
    random_decoder.requires_grad_(False)
    states = torch.randn(2, 6, 12, requires_grad=True)
    random_decoder.loss(two_clips(), states).backward()
    assert states.grad.abs().sum(2).min() > 0
    assert all(p.grad is None for p in random_decoder.parameters())


def test_states_of_a_grid_are_added_in_their_place():
    decoder, states = PixelFlow(replace(CONFIG, state_grid=(2, 2))), torch.randn(3, 6, 12)
    drop = torch.tensor([False, False, True])
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]], dtype=torch.bool).expand(3, -1)
    placed = decoder._in_place(states, None, drop, 3, 4, 4)
    assert placed.shape == (3, 3, 4, 4, 64) and not placed[2].any()
    key, later = decoder.key_states(states)[0], decoder.later_states(states)[0]
    for number, (y, x) in enumerate(((0, 0), (0, 3), (3, 0), (3, 3))):
        torch.testing.assert_close(placed[0, 0, y, x], key[number])
        torch.testing.assert_close(placed[0, 2, y, x], key[number] + later[5])
    torch.testing.assert_close(placed[0, 1, 1, 2], key[1] + later[4])
    masked = decoder._in_place(states, mask, None, 3, 4, 4)
    assert not masked[0, 0, 2:, :2].any()
    torch.testing.assert_close(masked[0, 2, 0, 0], key[0])
    assert decoder._in_place(states[:, :4], None, None, 3, 4, 4)[0].equal(placed[0, :1].expand(3, -1, -1, -1))
    with pytest.raises(ValueError, match="at least 2 x 2 states, got 3"):
        decoder.loss(two_clips(), states[:2, :3])


def test_the_loss_is_the_error_of_the_clean_clip():
    """It starts at the mean square of the clips, whatever the levels."""
    clips, decoder = two_clips(), PixelFlow(CONFIG)  # which predicts 0
    torch.testing.assert_close(decoder.losses(clips, torch.randn(2, 6, 12)), (2 * clips).square().flatten(1).mean(1))


def test_loss_is_of_its_generator(random_decoder):
    clips, states = two_clips(), torch.randn(2, 6, 12)
    first, second, other = (
        random_decoder.loss(clips, states, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first == second != other
    assert random_decoder.loss((clips * 255 + 127.5).byte(), states).isfinite()


def test_save_and_load(random_decoder, tmp_path):
    random_decoder.save_pretrained(tmp_path)
    loaded, states = PixelFlow.from_pretrained(tmp_path), torch.randn(1, 6, 12)
    assert loaded.config == CONFIG
    assert loaded.sample(states, FRAMES, SIZE, steps=2).equal(random_decoder.sample(states, FRAMES, SIZE, steps=2))


def test_one_graph(random_decoder):
    inputs = torch.randn(2, 3, FRAMES, SIZE, SIZE), torch.tensor([0.3, 0.9]), torch.randn(2, 6, 12)
    exported = torch.export.export(random_decoder, inputs).module()
    torch.testing.assert_close(exported(*inputs), random_decoder(*inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 6}, r"4k \+ 1 frames, got 6: the nearest is 5"),
        ({"size": (16, 18)}, "multiples of 4, got 16 x 18: the nearest is 16 x 16"),
        ({"states": torch.zeros(2, 6, 13)}, r"states must have shape \(batch, tokens, 12\), got \(2, 6, 13\)"),
        ({"mask": torch.ones(2, 5)}, r"must have shape \(batch, tokens\); got \(2, 5\)"),
        ({"indices": [1]}, "1 indices for 2 samples"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_bad_input(random_decoder, change, message):
    arguments = {"states": torch.zeros(2, 6, 12), "frames": FRAMES, "size": SIZE} | change
    with pytest.raises(ValueError, match=message):
        random_decoder.sample(**arguments)


def test_bad_settings():
    with pytest.raises(ValueError, match="does not divide into 3 heads"):
        PixelFlowConfig(num_heads=3)
    with pytest.raises(ValueError, match="state_dropout must be in"):
        PixelFlowConfig(state_dropout=1.0)
    decoder = PixelFlow(PixelFlowConfig(state_dim=12, dim=8, num_layers=1, num_heads=2, state_dropout=0))
    with pytest.raises(ValueError, match="guidance needs decoder.state_dropout"):
        decoder.sample(torch.zeros(1, 2, 12), 5, 8, cfg_scale=2.0)
    with pytest.raises(ValueError, match="1 rows of states for 2 clips"):
        decoder.loss(torch.zeros(2, 3, 5, 8, 8), torch.zeros(1, 2, 12))
