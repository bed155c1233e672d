"""Protocols: what their hash covers, the presets, and what they do to pixels."""

import dataclasses
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sweettok.data.lists import load_clips
from sweettok.data.preprocess import Preprocessing
from sweettok.data.reader import read_clip
from sweettok.data.writer import write_video
from sweettok.eval import frechet_distance
from sweettok.eval.cache import UNRELATED
from sweettok.eval.features import detector_frames, load_extractor
from sweettok.eval.protocol import CHOICES, PREPROCESSING, PRESETS, Protocol, find_protocol
from sweettok.eval.sources import VideoClips, chosen, fit
from sweettok.pixels import to_float

EXACT = PRESETS["exact"]
OPEN = {"exact", "efficientnet"}  # leave resize, position and stride to the model
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
    assert changed.hash != EXACT.hash
    if name in ("height", "width"):
        assert changed.hash != EXACT.filled(height=8, width=8).hash
    assert Protocol(**changed.to_dict()).hash == changed.hash


def test_hashes_are_stable_and_presets_differ():
    assert EXACT.hash == Protocol(**EXACT.to_dict()).hash and len(EXACT.hash) == 64
    assert len({protocol.hash for protocol in PRESETS.values()}) == len(PRESETS)
    assert all(name == protocol.name for name, protocol in PRESETS.items())
    assert set(UNRELATED) < set(FIELDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXACT.seed = 3


def test_open_fields_are_completed_by_a_model():
    """Published protocols fix resize, position and stride."""
    crop = Preprocessing(resize="crop", position="first", stride=2)
    completed = EXACT.completed(crop)
    assert [getattr(completed, name) for name in PREPROCESSING] == ["crop", "first", 2]
    assert completed.short == "error" and completed.name == "exact"
    for name in PRESETS.keys() - OPEN:
        assert PRESETS[name].completed(crop) == PRESETS[name]
    assert EXACT.filled(position="last").completed(crop).position == "last"
    assert not {"weights", "quantizer"} & set(FIELDS)  # the report has what is known of them: the hash of the weights


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
    with pytest.raises(ValueError, match="no protocol 'fvd'; there are exact, efficientnet, "):
        find_protocol("fvd")
    with pytest.raises(ValueError, match="no detector 'clip'; there are i3d-logits"):
        load_extractor("x.pt", EXACT.filled(detector="clip"))
    with pytest.raises(ValueError, match="needs batch_norm_eps"):
        load_extractor("x.pt", EXACT.filled(batch_norm_eps=None))
    with pytest.raises(ValueError, match="contains its epsilon"):
        load_extractor("x.pt", PRESETS["stylegan-v"].filled(batch_norm_eps=1e-5))


# ---------------------------------------------------------------------------------------------- arithmetic of presets


# Names of the golden implementations that compute what a preset computes, by the facts about the published codes.
IMPLEMENTATION = {
    "exact": "exact_f64_ddof1",
    "efficientnet": "exact_f64_ddof1",
    "sweettok-rfvd-ucf101": "omni_f32",
    "sweettok-gfvd-ucf101": "videogpt_f32",
    "omnitokenizer-rfvd-ucf101": "omni_f32",
    "omnitokenizer-rfvd-k600": "omni_f32",
    "omnitokenizer-gfvd-ucf101": "videogpt_f32",
    "k600-prediction": "videogpt_f32",
    "tats-128": "tats_f32",
    "larp-128": "larp_N_f64",
    "stylegan-v": "cdfvd_N_f64",
}


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
        if name not in OPEN:
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
def test_real_bytes_on_their_way_to_the_detector(name):
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


def resized(video, size, crop):
    """The arithmetic of published loaders that resize frames in torch, uint8 (3, T, H, W)."""
    height, width = video.shape[-2:]
    factor = max(size[0] / height, size[1] / width)
    scaled = tuple(max(edge, round(whole * factor)) for edge, whole in zip(size, (height, width), strict=True))
    scaled = scaled if crop else size
    frames = F.interpolate(video.movedim(1, 0).float(), scaled, mode="bilinear", antialias=True, align_corners=False)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    frames = frames[..., top : top + size[0], left : left + size[1]]
    return frames.round().clamp(0, 255).to(torch.uint8).movedim(0, 1)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("size", [(37, 61), (48, 64), (16, 16), (100, 51)])
def test_resizing_in_torch_bit_for_bit(crop, size):
    video = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    protocol = EXACT.filled(height=32, width=24, resize="crop" if crop else "stretch", resize_filter="antialias")
    assert torch.equal(fit(video, protocol), resized(video, (32, 24), crop))
    same = EXACT.filled(height=size[0], width=size[1], resize="stretch")
    assert torch.equal(fit(video, same), video)


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - OPEN))
def test_frames_of_each_preset(tmp_path, name):
    """Which frames of a file, and at which size: those of `read_clip`, or resized in torch where LARP does so."""
    video = torch.randint(0, 256, (3, 30, 40, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    write_video(tmp_path / "a.mkv", video, 8, lossless=True)
    protocol = PRESETS[name]
    if protocol.size is None:
        protocol = protocol.filled(height=40, width=52)
    found = VideoClips(load_clips(tmp_path), protocol)[0]["video"]
    start = 30 // 2 - protocol.frames // 2
    if protocol.position == "random":
        start = random.Random("0 0 0").randint(0, 30 - protocol.frames)
    if name == "larp-128":
        assert torch.equal(found, resized(video[:, start : start + protocol.frames], protocol.size, crop=True))
    else:
        assert torch.equal(found, read_clip(tmp_path / "a.mkv", protocol.frames, protocol.size, start=start))


def test_files_of_mixed_sizes_need_a_size(tmp_path):
    for name, width in (("a", 16), ("b", 24)):
        video = torch.zeros(3, 9, 16, width, dtype=torch.uint8)
        write_video(tmp_path / f"{name}.mkv", video, 8, lossless=True)
    clips = load_clips(tmp_path)
    protocol = EXACT.filled(frames=9, height=16, width=16).completed(Preprocessing())
    with pytest.raises(ValueError, match="b.mkv: frames are 16x24, others 16x16: set the height and width"):
        VideoClips(clips, protocol, native=True)[1]
    for name in CHOICES["resize_filter"]:
        assert VideoClips(clips, protocol.filled(resize_filter=name))[1]["video"].shape == (3, 9, 16, 16)


def test_short_files_are_errors_unless_the_protocol_fills_them(tmp_path):
    write_video(tmp_path / "a.mkv", torch.full((3, 6, 16, 16), 200, dtype=torch.uint8), 8, lossless=True)
    clips = load_clips(tmp_path)
    protocol = EXACT.filled(frames=9, height=16, width=16).completed(Preprocessing())
    with pytest.raises(ValueError, match="a.mkv: 6 frames are too few for 9"):
        VideoClips(clips, protocol)[0]
    assert VideoClips(clips, protocol.filled(short="black"))[0]["video"][:, 6:].max() == 0
