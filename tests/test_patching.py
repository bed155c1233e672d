"""Order of values in patches, and sizes of the grid."""

import naive
import pytest
import tiny
import torch

from sweettok.layers.patching import PatchEmbed, Unpatch

SIZES = [(9, 16, 16, 4, 4), (5, 8, 12, 4, 2), (1, 8, 8, 2, 4), (4, 6, 3, 3, 3)]


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_patches(size):
    frames, height, width, patch, tube = size
    module = tiny.fill(PatchEmbed(20, patch, tube))
    W = {}
    for name, value in module.state_dict().items():
        part, place, kind = name.split(".")
        published = "to_patch_emb_first_frame" if part == "first_frame" else "to_patch_emb"
        W[f"encoder.{published}.{int(place) + 1}.{kind}"] = value.double().numpy()
    video = tiny.clip(0, frames, height, width)
    ours = module(video)
    assert ours.shape == (1, 1 + (frames - 1) // tube, height // patch, width // patch, 20)
    assert tiny.relative_error(ours[0], naive.patch_grid(W, video[0].double().numpy(), patch, tube)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_unpatching(size):
    frames, height, width, patch, tube = size
    module = tiny.fill(Unpatch(20, patch, tube))
    W = {}
    for name, value in module.state_dict().items():
        part, kind = name.split(".")
        W[f"{'to_pixels_first_frame' if part == 'first_frame' else 'to_pixels'}.0.{kind}"] = value.double().numpy()
    t, h, w = 1 + (frames - 1) // tube, height // patch, width // patch
    x = torch.from_numpy(tiny.normal("x", (2, t, h, w, 20))).float()
    ours = module(x)
    assert ours.shape == (2, 3, frames, height, width)
    for b in range(2):
        assert tiny.relative_error(ours[b], naive.pixels(W, "", x[b].double().numpy(), patch, tube)) < 1e-5


@torch.no_grad()
def test_brightness_and_contrast_of_a_patch_count_only_without_norms():
    video = tiny.clip(0, 5, 8, 8)
    for norm in (True, False):
        module = tiny.fill(PatchEmbed(20, 4, 2, norm=norm))
        change = tiny.relative_error(module(0.5 * video + 0.1), module(video))
        assert change < 1e-3 if norm else change > 0.1
