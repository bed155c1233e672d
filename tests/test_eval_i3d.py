"""I3D: the published file's names, the input arithmetic, and the golden numbers."""

import hashlib
import json

import numpy as np
import pytest
import torch

from sweettok.eval import I3D
from sweettok.eval.features import I3DFeatures, detector_frames, load_extractor
from sweettok.eval.i3d import MaxPool, ScriptedI3D, pad_same, preprocess
from sweettok.eval.protocol import PRESETS
from sweettok.pixels import to_float, to_uint8

LOGITS = 2e-5  # absolute; the golden numbers themselves move by 2e-6 with the number of threads


@pytest.fixture(scope="module")
def random_i3d():
    torch.manual_seed(0)
    return I3D()


def clip(num_frames, height=16, width=16, count=1):
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randint(0, 256, (count, num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def test_entries_of_the_published_file(random_i3d):
    state = {name: value for name, value in random_i3d.state_dict().items() if value.is_floating_point()}
    assert len(state) == 287 and sum(value.numel() for value in state.values()) == 12711824
    assert state["Mixed_4f.b2b.conv3d.weight"].shape == (128, 32, 3, 3, 3)
    assert state["logits.conv3d.bias"].shape == (400,) and "b3a" not in " ".join(state)


def test_from_release_is_strict(random_i3d, tmp_path):
    state = random_i3d.state_dict()
    floats = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(floats, tmp_path / "i3d.pt")
    for weights in (floats, state, tmp_path / "i3d.pt"):
        loaded = I3D.from_release(weights, batch_norm_eps=1e-3)
        assert torch.equal(loaded.Mixed_5c.b0.bn.running_var, state["Mixed_5c.b0.bn.running_var"])
        assert loaded.Mixed_5c.b0.bn.eps == 1e-3
    without = {name: value for name, value in floats.items() if name != "Mixed_3b.b0.bn.bias"}
    with pytest.raises(ValueError, match=r"1 of 344 entries differ: Mixed_3b.b0.bn.bias \(absent given, \(64,\) exp"):
        I3D.from_release(without)
    with pytest.raises(ValueError, match=r"head \(\(3,\) given, no such entry expected\)"):
        I3D.from_release({**floats, "head": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"logits.conv3d.bias \(\(10,\) given, \(400,\) expected\)"):
        I3D.from_release({**floats, "logits.conv3d.bias": torch.zeros(10)})
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        I3D.from_release(tmp_path / "nowhere.pt")


def test_frozen_and_always_in_eval_mode(random_i3d):
    assert not random_i3d.train().training and not random_i3d.Conv3d_1a_7x7.bn.training
    assert not any(p.requires_grad for p in random_i3d.parameters())


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 9, 8, 8, 3), r"uint8 frames of shape \(N, T, H, W, 3\), got torch.float32"),
        (torch.zeros(1, 3, 9, 8, 8, dtype=torch.uint8), r"got torch.uint8 \(1, 3, 9, 8, 8\)"),
        (torch.zeros(9, 8, 8, 3, dtype=torch.uint8), "got torch.uint8"),
        (np.zeros((1, 9, 8, 8, 3), np.uint8), "got ndarray"),
        (torch.zeros(1, 8, 8, 8, 3, dtype=torch.uint8), "at least 9 frames, got 8"),
    ],
)
def test_input_is_checked(random_i3d, video, message):
    with pytest.raises(ValueError, match=message):
        random_i3d(video)


def test_unknown_resize():
    with pytest.raises(ValueError, match="resize must be one of stretch, crop, got 'pad'"):
        preprocess(clip(1), "pad")


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 7, 2, (2, 3)),
        (16, 7, 2, (2, 3)),
        (17, 7, 2, (3, 3)),
        (112, 3, 2, (0, 1)),
        (5, 2, 2, (0, 1)),
        (14, 2, 2, (0, 0)),
        (9, 3, 1, (1, 1)),
        (9, 1, 1, (0, 0)),
        (3, 2, 2, (0, 1)),
    ],
)
def test_same_padding(size, kernel, stride, expected):
    for axis in range(3):
        shape, kernels, strides = [4, 4, 4], [1, 1, 1], [1, 1, 1]
        shape[axis], kernels[axis], strides[axis] = size, kernel, stride
        padded = pad_same(torch.ones(1, 1, *shape), tuple(kernels), tuple(strides))
        line = padded[0, 0].movedim(axis, 0)[:, 0, 0]
        assert line.tolist() == [0] * expected[0] + [1] * size + [0] * expected[1]


def test_max_pool_keeps_the_last_odd_place():
    x = torch.arange(5.0).view(1, 1, 5, 1, 1)
    assert MaxPool((2, 1, 1), (2, 1, 1))(x).flatten().tolist() == [1, 3, 4]


def test_crop_keeps_the_aspect_and_the_centre():
    video = torch.zeros(1, 1, 240, 320, 3, dtype=torch.uint8)
    video[:, :, :, 160:] = 255  # an edge in the middle stays in the middle
    frame = preprocess(video, "crop")[0, :, 0]
    assert frame.shape == (3, 224, 224)  # from 224 x 299: 37 columns go on the left, 38 on the right
    row = frame[0, 100]
    assert row[111] < 0 < row[113]
    sides = torch.cat((row[:111] + 1, row[114:] - 1))
    torch.testing.assert_close(sides, torch.zeros_like(sides), rtol=0, atol=1e-6)  # interpolation rounds


def test_antialiasing_matters_where_frames_shrink():
    stripes = (torch.arange(448) % 2 * 255).to(torch.uint8).expand(1, 1, 448, 448)[..., None].expand(-1, -1, -1, -1, 3)
    plain, smooth = (preprocess(stripes, "stretch", antialias=flag) for flag in (False, True))
    assert smooth.abs().max() < 0.3 and smooth.shape == plain.shape
    small = clip(1, 32, 32)
    torch.testing.assert_close(preprocess(small), preprocess(small, antialias=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("num_frames", "windows"), [(25, 3), (33, 4)])
def test_time_windows_are_averaged(random_i3d, num_frames, windows):
    seen = []
    hook = random_i3d.logits.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = random_i3d(clip(num_frames))
    hook.remove()
    assert seen[0].shape == (1, 400, windows, 1, 1)
    torch.testing.assert_close(logits, seen[0].mean(2).flatten(1))


class Script(torch.nn.Module):
    """Has the signature of the TorchScript detector, and returns statistics of its input."""

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if rescale:
            x = 2 * x / 255 - 1
        if resize:
            x = x[..., ::2, ::2]
        features = torch.stack((x.mean((1, 2, 3, 4)), x[:, 0].mean((1, 2, 3)), x[:, :, 0].mean((1, 2, 3))), 1)
        return features if return_features else features.sum()


def test_torchscript_detector(tmp_path, random_i3d):
    torch.jit.script(Script()).save(str(tmp_path / "i3d_torchscript.pt"))
    video = clip(9, 32, 32, count=2)
    inside = load_extractor(tmp_path / "i3d_torchscript.pt", PRESETS["stylegan-v"])(video)
    values = 2 * video.float() / 255 - 1
    halved = values[:, :, ::2, ::2]
    expected = torch.stack((halved.mean((1, 2, 3, 4)), halved[..., 0].mean((1, 2, 3)), halved[:, 0].mean((1, 2, 3))), 1)
    torch.testing.assert_close(inside, expected)
    floats = load_extractor(tmp_path / "i3d_torchscript.pt", PRESETS["larp-128"])(video.float())
    torch.testing.assert_close(floats, inside)
    outside = load_extractor(tmp_path / "i3d_torchscript.pt", PRESETS["stylegan-v"].filled(detector_resize="crop"))
    frames = preprocess(video, "crop")
    torch.testing.assert_close(outside(video)[:, 0], frames.mean((1, 2, 3, 4)))
    torch.save(random_i3d.state_dict(), tmp_path / "i3d.pt")
    with pytest.raises(ValueError, match="i3d.pt is no TorchScript file"):
        ScriptedI3D.load(tmp_path / "i3d.pt")
    with pytest.raises(ValueError, match="i3d_torchscript.pt cannot be read as weights"):
        I3D.from_release(tmp_path / "i3d_torchscript.pt")
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        ScriptedI3D.load(tmp_path / "nowhere.pt")


def test_clips_do_not_mix_and_settings_are_restored(random_i3d):
    video = clip(9, 20, 30, count=2)
    before = video.clone()
    together = random_i3d(video)
    assert torch.equal(video, before) and together.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        alone = random_i3d(video[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)
    assert torch.backends.cudnn.enabled


# ------------------------------------------------------------------------------------------------- golden numbers


def waves(amplitude, phase=0.0, speed=0.0):
    """uint8 (3, 17, 64, 64, 3): the golden clips."""
    t, y, x = np.meshgrid(np.arange(17.0), np.arange(64.0), np.arange(64.0), indexing="ij")
    video = np.empty((3, 17, 64, 64, 3), np.uint8)
    for i, k in np.ndindex(3, 3):
        a, b = 0.11 + 0.07 * i + 0.03 * k, 0.05 + 0.09 * i - 0.02 * k
        c, p = 0.31 - 0.17 * i + 0.05 * k + speed, 0.4 + 1.1 * i + 0.7 * k + phase
        video[i, ..., k] = np.clip(np.round(127.5 + amplitude * np.sin(a * x + b * y + c * t + p)), 0, 255)
    return torch.from_numpy(video)


def first_clip(height, width):
    """uint8 (1, 9, H, W, 3): the formula of the golden clip 0 at another size."""
    t, y, x, k = np.meshgrid(np.arange(9.0), np.arange(height), np.arange(width), np.arange(3.0), indexing="ij")
    wave = np.sin((0.11 + 0.03 * k) * x + (0.05 - 0.02 * k) * y + (0.31 + 0.05 * k) * t + 0.4 + 0.7 * k)
    return torch.from_numpy(np.clip(np.round(127.5 + 127.5 * wave), 0, 255).astype(np.uint8))[None]


@pytest.fixture(scope="module")
def golden(golden_folder):
    with np.load(golden_folder / "fvd.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def recipe(golden_folder):
    return json.loads((golden_folder / "fvd.json").read_text())


@pytest.fixture(scope="module")
def weights(recipe, golden_rule):
    filled = golden_rule.fill(recipe["i3d_float_shapes"], 0, {"running_var": 0.5})
    digest = hashlib.sha256(b"".join(filled[name].tobytes() for name in sorted(filled))).hexdigest()
    assert digest == recipe["weights"]["sha256_of_float_entries_sorted_by_name"]
    return filled


@pytest.fixture(scope="module")
def i3d(weights):
    return I3D.from_release(weights)


@pytest.fixture(scope="module")
def real(recipe):
    video = waves(127.5)
    assert hashlib.sha256(video.numpy().tobytes()).hexdigest() == recipe["videos"]["real_sha256"]
    return video


def close(ours, golden, tolerance=LOGITS):
    np.testing.assert_allclose(ours.numpy(), golden, rtol=0, atol=tolerance)


def test_golden_logits_and_endpoints(i3d, real, golden):
    outputs = {}
    for name, layer in i3d.named_children():
        layer.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
    logits = i3d(real)
    for layer in i3d.children():
        layer._forward_hooks.clear()
    close(logits, golden["logits_real"])
    close(outputs["avg_pool"], golden["pooled_real"])
    ends = [name for name in golden if name.startswith("end_")]
    assert len(ends) == 16
    for name in ends:
        output = outputs[name.removeprefix("end_")]
        t, h, w = (size // 2 for size in output.shape[2:])
        close(output[:, :16, t, h, w], golden[name])


def test_golden_logits_of_the_other_clips(i3d, recipe, golden):
    video = waves(100, 0.5, 0.1)
    assert hashlib.sha256(video.numpy().tobytes()).hexdigest() == recipe["videos"]["fake_sha256"]
    close(i3d(video[1:]), golden["logits_fake"][1:])


@pytest.mark.parametrize("num_frames", [9, 10, 16])
def test_golden_logits_of_short_clips(i3d, real, golden, num_frames):
    close(i3d(real[:1, :num_frames]), golden[f"logits_real0_first{num_frames}"])


def test_golden_logits_of_the_crop_path(i3d, real, golden):
    close(i3d(real[:1], resize="crop"), golden["logits_real_videogpt_path"][:1])


def test_golden_batch_norm_epsilon(weights, real, golden):
    close(I3D.from_release(weights, batch_norm_eps=1e-3)(real[:1]), golden["logits_real_bn_eps_1e-3"][:1])


@pytest.mark.parametrize(("wrong", "least"), [("bgr", 0.1), ("reversed", 0.1), ("unit range", 0.1)])
def test_golden_logits_of_wrong_input(i3d, real, golden, wrong, least):
    """Wrong order of channels or frames and a wrong range move the scores by thousands of times the tolerance."""
    video = real[:1]
    video = {"bgr": video.flip(-1), "reversed": video.flip(1), "unit range": video // 255}[wrong]
    assert np.abs(i3d(video).numpy() - golden["logits_real"][:1]).max() > least


def test_golden_weights_of_the_rule_alone(recipe, golden_rule, real, golden):
    model = I3D.from_release(golden_rule.fill(recipe["i3d_float_shapes"]))
    close(model(real[:1]), golden["logits_real_rule_only"][:1], 2e-6)


def test_golden_bytes_of_the_reconstruction_loop(i3d, real, golden, recipe):
    lowered = to_uint8(to_float(real), rounding="floor")
    levels = torch.arange(256, dtype=torch.uint8)
    changed = to_uint8(to_float(levels), rounding="floor") != levels
    assert changed.nonzero().flatten().tolist() == recipe["byte_truncation_rfvd_loop"]["levels_changed"]
    close(i3d(lowered[1:2]), golden["logits_real_after_rfvd_bytes"][1:2])


@pytest.mark.parametrize("size", ["64x64", "48x80", "80x48", "256x320", "67x101"])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_golden_preprocessing(golden, resize, size):
    video = first_clip(*map(int, size.split("x")))
    close(preprocess(video, resize)[0, :, ::8, ::37, ::37], golden[f"pre_{resize}_{size}"], 2e-6)
    if resize == "crop":
        close(preprocess(video.float(), resize)[0, :, ::8, ::37, ::37], golden[f"pre_styleganv_{size}"], 2e-6)


@pytest.mark.parametrize(
    ("name", "array"),
    [("sweettok-rfvd-ucf101", "logits_real_after_rfvd_bytes"), ("sweettok-gfvd-ucf101", "logits_real_videogpt_path")],
)
def test_golden_logits_of_the_presets(i3d, real, golden, name, array):
    """From bytes as they are read to scores, as the protocol has it."""
    protocol = PRESETS[name]
    assert protocol.batch_norm_eps == i3d.batch_norm_eps
    extractor = I3DFeatures(i3d, protocol.detector_resize, protocol.detector_antialias)
    close(extractor(detector_frames(real[1:2].movedim(-1, 1), protocol, fake=False)), golden[array][1:2])
