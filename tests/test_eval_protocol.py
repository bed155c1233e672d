"""Protocols: what their hash covers, the presets, and what they do to pixels."""

import dataclasses

import numpy as np
import pytest
import torch

from sweettok.data.lists import load_clips
from sweettok.data.writer import write_video
from sweettok.eval import frechet_distance
from sweettok.eval.cache import OTHERS
from sweettok.eval.features import detector_frames, load_extractor
from sweettok.eval.presets import PRESETS, find_protocol
from sweettok.eval.protocol import CHOICES, Protocol, differing_fields
from sweettok.eval.sources import VideoClips, chosen, fit
from sweettok.pixels import to_float

EXACT = PRESETS["exact"]
FIELDS = [field.name for field in dataclasses.fields(Protocol)]


def another(name):
    """A value of a field that `exact` does not have."""
    value = getattr(EXACT, name)
    if name in CHOICES:
        return next(choice for choice in CHOICES[name] if choice != value)
    if name in ("height", "width"):
        return 8
    return {bool: not value, int: 7, float: 0.5, str: "other", type(None): 3}[type(value)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_changes_the_hash(name):
    changes = {name: another(name)}
    if name in ("height", "width"):
        changes = {"height": 8, "width": 8, name: 9}
    changed = EXACT.filled(**changes)
    assert changed.hash != EXACT.hash and name in differing_fields(EXACT.to_dict(), changed.to_dict())
    if name in ("height", "width"):
        assert changed.hash != EXACT.filled(height=8, width=8).hash
    assert Protocol(**changed.to_dict()).hash == changed.hash


def test_hashes_are_stable_and_presets_differ():
    assert EXACT.hash == Protocol(**EXACT.to_dict()).hash and len(EXACT.hash) == 64
    assert len({protocol.hash for protocol in PRESETS.values()}) == len(PRESETS)
    assert all(name == protocol.name for name, protocol in PRESETS.items())
    assert set(OTHERS) < set(FIELDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXACT.seed = 3


def test_settings():
    changed = find_protocol("tats-128", ["stride=2", "tf32=true", "num_real=none", "batch_norm_eps=0.001"])
    assert (changed.stride, changed.tf32, changed.num_real, changed.batch_norm_eps) == (2, True, None, 1e-3)
    assert changed.name == "tats-128 stride=2 tf32=True num_real=None batch_norm_eps=0.001"
    assert find_protocol("tats-128", ["frames=16"]) == PRESETS["tats-128"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stride", "a setting is FIELD=VALUE"),
        ("name=x", "a setting is FIELD=VALUE"),
        ("stride=fast", "stride takes a int, got 'fast'"),
        ("stride=0", "stride must be at least 1, got 0"),
        ("tf32=maybe", "tf32 takes a bool"),
        ("quantize=ceil", "quantize must be one of round, floor, none; got 'ceil'"),
        ("height=8", "give height and width, or neither"),
        ("batch_norm_eps=0", "batch_norm_eps must be above 0"),
        ("given_frames=17", "given_frames must be fewer than the 17 frames"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        EXACT.filled(frames=17).changed([setting])


def test_unknown_protocols_and_detectors():
    with pytest.raises(ValueError, match="no protocol 'fvd'; there are exact, "):
        find_protocol("fvd")
    with pytest.raises(ValueError, match="no detector 'clip'; there are i3d-logits"):
        load_extractor("x.pt", EXACT.filled(detector="clip"))
    with pytest.raises(ValueError, match="needs batch_norm_eps"):
        load_extractor("x.pt", EXACT.filled(batch_norm_eps=None))
    with pytest.raises(ValueError, match="holds its own epsilon"):
        load_extractor("x.pt", PRESETS["stylegan-v"].filled(batch_norm_eps=1e-5))


# ---------------------------------------------------------------------------------------------- arithmetic of presets


# Names of the golden implementations that compute what a preset computes, by the facts about the published codes.
IMPLEMENTATION = {
    "exact": "exact_f64_ddof1", "sweettok-rfvd-ucf101": "omni_f32", "sweettok-gfvd-ucf101": "videogpt_f32",
    "omnitokenizer-rfvd-ucf101": "omni_f32", "omnitokenizer-rfvd-k600": "omni_f32",
    "omnitokenizer-gfvd-ucf101": "videogpt_f32", "k600-prediction": "videogpt_f32", "tats-128": "tats_f32",
    "larp-128": "larp_N_f64", "stylegan-v": "cdfvd_N_f64",
}  # fmt: skip


@pytest.fixture(scope="module")
def golden(golden_folder):
    with np.load(golden_folder / "fvd.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("case", ["n2048", "n256", "n16", "e2e_omni_path"])
def test_golden_distance_of_each_preset(golden, name, case):
    protocol = PRESETS[name]
    if case.startswith("e2e"):
        fake, real = golden["logits_fake"], golden["logits_real"]
    else:
        fake, real = (np.random.RandomState(seed).randn(int(case[1:]), 400) for seed in (7, 8))
        real = real * 1.1 + 0.2
        if name != "exact":
            fake, real = fake.astype(np.float32), real.astype(np.float32)
    found = frechet_distance(real, fake, protocol.ddof, protocol.dtype, protocol.root)
    expected = float(golden[f"fd_{case}_{IMPLEMENTATION[name]}"])
    if protocol.dtype == "float32":
        tolerance = {"abs": 0.1 if case == "n16" else 0.03}
    else:
        tolerance = {"abs": 2e-4} if protocol.root == "sqrtm" else {"rel": 1e-9}
    assert found == pytest.approx(expected, **tolerance)


LEVELS = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 1, 16, 16)


@pytest.mark.parametrize("name", PRESETS)
def test_real_bytes_reach_the_detector_as_the_facts_say(name):
    """Only what passes through [-0.5, 0.5] and is truncated loses a level, and only in the levels 1..63."""
    darkens = name.startswith(("sweettok-rfvd", "omnitokenizer-rfvd", "tats"))
    frames = detector_frames(LEVELS, PRESETS[name], fake=False)
    changed = frames[0, 0, :, :, 0].flatten().int() - torch.arange(256)
    expected = torch.where((torch.arange(256) >= 1) & (torch.arange(256) <= 63), -int(darkens), 0)
    assert torch.equal(changed, expected.int())
    assert frames.dtype == (torch.float32 if name == "larp-128" else torch.uint8)


def test_floats_become_bytes_by_the_protocol():
    """Rounded, truncated or left alone; overshoot is cut off, kept, or refused."""
    values = torch.tensor([-0.6, -0.5, 0.0, 0.0019, 0.4999, 0.6]).view(1, 1, 1, 1, 6).expand(1, 3, 1, 1, 6)

    def frames(**changes):
        return detector_frames(values, EXACT.filled(**changes), fake=True)[0, 0, 0, :, 0].tolist()

    assert frames(quantize="round") == [0, 0, 128, 128, 255, 255]  # 127.5 rounds to the even neighbour
    assert frames(quantize="floor") == [0, 0, 127, 127, 254, 255]
    assert frames(quantize="none") == pytest.approx([0, 0, 127.5, 127.9845, 254.9745, 255], abs=1e-3)
    overshoot = frames(quantize="none", clamp="none")
    assert overshoot == pytest.approx([-25.5, 0, 127.5, 127.9845, 254.9745, 280.5], abs=1e-3)
    with pytest.raises(ValueError, match=r"values reach 0.6, outside of \[-0.5, 0.5\]"):
        frames(clamp="none")
    with pytest.raises(ValueError, match="values reach 0.6"):
        detector_frames(values, EXACT.filled(clamp="fake"), fake=False)
    assert detector_frames(to_float(LEVELS), EXACT, True).equal(LEVELS.movedim(1, -1))


def test_given_frames_may_be_left_out():
    video = torch.arange(17, dtype=torch.uint8).view(1, 1, 17, 1, 1).expand(1, 3, 17, 2, 2)
    prediction = PRESETS["k600-prediction"]
    assert (prediction.scored_frames, prediction.filled(count_given=False).scored_frames) == (17, 12)
    assert detector_frames(video, prediction, True).shape[1] == 17
    assert detector_frames(video, prediction.filled(count_given=False), True)[0, :, 0, 0, 0].tolist() == [*range(5, 17)]


# ---------------------------------------------------------------------------------------------------- clips and sizes


def test_which_clips_are_chosen():
    assert chosen(5, None, EXACT) == chosen(5, 9, EXACT) == [0, 1, 2, 3, 4]
    assert chosen(5, 2, EXACT) == [0, 1]
    drawn = [chosen(1000, 10, EXACT.filled(selection="seeded", seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] == sorted(set(drawn[0])) and len(drawn[0]) == 10


def test_fitting_frames_to_a_size():
    """A fine checker pattern is grey when antialiased, and the crop keeps the aspect."""
    checks = (torch.arange(32)[:, None] + torch.arange(64)[None]).remainder(2).mul(255).to(torch.uint8)
    video = checks.expand(3, 2, 32, 64).clone()
    video[..., :12], video[..., 52:] = 0, 255
    small = EXACT.filled(height=8, width=8)
    grey = fit(video, small.filled(resize_filter="antialias"))
    assert grey.shape == (3, 2, 8, 8) and ((grey[..., 2:6].int() - 127).abs() <= 8).all()
    assert grey[..., 0].max() == 0 and grey[..., -1].min() == 255
    cropped = fit(video, small.filled(resize_filter="antialias", resize="crop"))
    assert ((cropped.int() - 127).abs() <= 8).all()  # the marks at the sides are cut off
    shifted = fit(video[..., 1:], EXACT.filled(height=16, width=63, resize_filter="bilinear"))
    assert not shifted.equal(fit(video[..., 1:], EXACT.filled(height=16, width=63)))
    assert fit(video, EXACT.filled(height=32, width=64)) is video


def test_files_of_mixed_sizes_need_a_size(tmp_path):
    for name, width in (("a", 16), ("b", 24)):
        video = torch.zeros(3, 9, 16, width, dtype=torch.uint8)
        write_video(tmp_path / f"{name}.mkv", video, 8, lossless=True)
    clips = load_clips(tmp_path)
    protocol = EXACT.filled(frames=9, height=16, width=16)
    with pytest.raises(ValueError, match="b.mkv: frames are 16x24, others 16x16: say with --set"):
        VideoClips(clips, protocol, native=True)[1]
    for name in CHOICES["resize_filter"]:
        assert VideoClips(clips, protocol.filled(resize_filter=name))[1]["video"].shape == (3, 9, 16, 16)


def test_short_files_are_errors_unless_the_protocol_fills_them(tmp_path):
    write_video(tmp_path / "a.mkv", torch.full((3, 6, 16, 16), 200, dtype=torch.uint8), 8, lossless=True)
    clips = load_clips(tmp_path)
    protocol = EXACT.filled(frames=9, height=16, width=16)
    with pytest.raises(ValueError, match="a.mkv: 6 frames are too few for 9"):
        VideoClips(clips, protocol)[0]
    assert VideoClips(clips, protocol.filled(short="black"))[0]["video"][:, 6:].max() == 0
