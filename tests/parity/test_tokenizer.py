"""Every array of the full-size golden runs, met within 1e-5 (pixels after the sharp softmax: 1e-4)."""

import json
import runpy

import numpy as np
import pytest
import torch

from sweettok import ProxyTokenizer, SweetTok
from sweettok.losses.terms import quantizer_loss

TOLERANCE = 1e-5
VIDEO_TOLERANCE = 1e-4  # the softmax over 8192 logits is sharp and amplifies rounding


def sine_clip(seed: int) -> torch.Tensor:
    rng = np.random.RandomState(1000 + seed)
    t, y, x = np.meshgrid(np.arange(17), np.arange(256), np.arange(256), indexing="ij")
    clip = np.zeros((3, 17, 256, 256))
    for c in range(3):
        for _ in range(4):
            a, b = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
            w, p = rng.uniform(-0.6, 0.6), rng.uniform(0, 6.28)
            clip[c] += np.sin(a * x + b * y + w * t + p) / 4
    return torch.from_numpy((0.5 * clip).astype(np.float32))[None]


class Golden:
    """Golden arrays of one model, the weights they were made with, and a record of what was compared."""

    def __init__(self, shared, rule, name):
        folder = shared / "reference" / "golden"
        recipe = json.loads((folder / f"{name}.json").read_text())
        self.arrays = dict(np.load(folder / f"{name}.npz"))
        self.weights = rule.fill(recipe["shapes"], recipe["seed"], recipe["gains"])
        self.seen = set()

    def close(self, name, ours, strides, tolerance=TOLERANCE):
        """`ours`, sampled with `strides`, equals the array within a relative error of norms."""
        self.seen.add(name)
        golden = self.arrays[name].astype(np.float64)
        ours = ours.detach().double().numpy()[tuple(slice(None, None, stride) for stride in strides)]
        assert ours.shape == golden.shape, f"{name}: {ours.shape} against {golden.shape}"
        error = np.linalg.norm(ours - golden) / np.linalg.norm(golden)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"

    def integers(self, name):
        self.seen.add(name)
        return torch.from_numpy(self.arrays[name].astype(np.int64))

    def norm(self, x, released):
        """A final norm of the release that the model has no use for."""
        gamma, beta = (torch.from_numpy(self.weights[f"{released}.norm_out.{part}"]) for part in ("gamma", "beta"))
        return torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta)


@pytest.fixture(scope="module")
def proxy_golden(shared, golden_rule):
    return Golden(shared, golden_rule, "proxy_0")


@pytest.fixture(scope="module")
def golden(shared, golden_rule):
    return Golden(shared, golden_rule, "tokenizer_0")


@pytest.fixture(scope="module")
def tokenizer(shared, golden, tmp_path_factory):
    priors = tmp_path_factory.mktemp("priors")
    runpy.run_path(str(shared / "reference" / "priors.py"))["main"](priors)
    return SweetTok.from_release(golden.weights, priors=priors)


@torch.no_grad()
def test_proxy(proxy_golden):
    golden, clip = proxy_golden, sine_clip(0)
    proxy = ProxyTokenizer.from_release(golden.weights)
    features = []
    handle = proxy.to_code.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    z = proxy.features(clip)
    handle.remove()
    golden.close("features_BDthw", features[0].movedim(-1, 1), (1, 16, 1, 8, 8))
    golden.close("z_BDthw", z.movedim(-1, 1), (1, 1, 1, 4, 4))
    codes = proxy.encode(clip)
    assert torch.equal(codes[0], golden.integers("codes_thw"))
    golden.close("video_BCTHW", proxy.decode(codes), (1, 1, 3, 13, 13))
    image_codes = proxy.encode(clip[:, :, 0])
    assert torch.equal(image_codes[0], golden.integers("image_codes_thw"))
    golden.close("image_BCHW", proxy.decode(image_codes)[:, :, 0], (1, 1, 13, 13))
    assert golden.seen == set(golden.arrays)


@torch.no_grad()
def test_tokenizer(tokenizer, golden):
    clip = sine_clip(0)
    check_encoder(tokenizer, golden, clip)
    latents = tokenizer.encoder(clip)
    spatial, temporal = (q(z) for q, z in zip(quantizers(tokenizer), latents, strict=True))
    golden.close("z_spatial_BD11S", latents[0].mT[:, :, None, None], (1, 8, 1, 1, 8))
    golden.close("z_temporal_BD11M", latents[1].mT[:, :, None, None], (1, 8, 1, 1, 16))
    golden.close("codes_spatial_KD", tokenizer.spatial_quantizer.codebook(), (64, 8))
    golden.close("codes_temporal_KD", tokenizer.temporal_quantizer.codebook(), (64, 8))
    check_ids(tokenizer, golden, latents, spatial, temporal)
    golden.close("zq_spatial_BD11S", spatial.output.mT[:, :, None, None], (1, 8, 1, 1, 8))
    golden.close("zq_temporal_BD11M", temporal.output.mT[:, :, None, None], (1, 8, 1, 1, 16))
    losses = [quantizer_loss(z, code) for quantized in (spatial, temporal) for z, code in quantized.halves]
    total, encoder_side, codebook_side = (torch.stack(term).sum() for term in zip(*losses, strict=True))
    golden.close("vq_losses", torch.stack((total, 0.25 * codebook_side, encoder_side)), (1,))

    prediction = tokenizer.predict(clip)
    golden.close("proxy_logits_BKthw", prediction.logits, (1, 128, 1, 8, 8))
    assert torch.equal(prediction.logits.argmax(1)[0], golden.integers("proxy_argmax_thw"))
    video = tokenizer.to_pixels(prediction.logits)
    golden.close("video_BCTHW", video, (1, 1, 3, 13, 13), VIDEO_TOLERANCE)
    decoded = tokenizer.decode(tokenizer.encode(clip).ids)
    assert torch.equal(decoded, video.clamp(-0.5, 0.5))

    codes = torch.from_numpy(np.random.RandomState(55).randint(0, 8192, (1, 5, 32, 32)))
    pixels = tokenizer.pixel_decoder
    golden.close("pixel_from_codes_BCTHW", pixels(pixels.codebook(codes)), (1, 1, 3, 13, 13))
    golden.close("pixel_image_BCHW", pixels(pixels.codebook(codes[:, :1]))[:, :, 0], (1, 1, 13, 13))
    assert golden.seen == set(golden.arrays)


def quantizers(tokenizer):
    return tokenizer.spatial_quantizer, tokenizer.temporal_quantizer


def check_encoder(tokenizer, golden, clip):
    encoder = tokenizer.encoder
    patches = encoder.patches(clip)
    golden.close("patches_BthwD", patches, (1, 1, 8, 8, 8))
    layers = [x.flatten(0, 1) for x in encoder.spatial(patches.flatten(2, 3), encoder.grid)]
    layers.append(golden.norm(layers[-1], "encoder.enc_spatial_transformer"))
    for i, x in enumerate(layers):
        golden.close(f"enc_spatial_{i}_TND", x, (1, 67, 16))
    motion = (patches[:, 1:] - patches[:, :-1]).flatten(2, 3).transpose(1, 2)
    layers = [x.flatten(0, 1) for x in encoder.temporal(motion, encoder.grid)]
    layers.append(golden.norm(layers[-1], "encoder.enc_temporal_transformer"))
    for i, x in enumerate(layers):
        golden.close(f"enc_temporal_{i}_NtD", x, (67, 1, 16))
    raw = {}
    for name, head, branch in (
        ("z_spatial_raw_BD1S", encoder.spatial_out, encoder.spatial_branch),
        ("z_temporal_raw_BD1M", encoder.temporal_out, encoder.temporal_branch),
    ):
        handle = head[1].register_forward_hook(lambda module, inputs, output, name=name: raw.update({name: output}))
        branch(patches)
        handle.remove()
    golden.close("z_spatial_raw_BD1S", raw["z_spatial_raw_BD1S"].mT[:, :, None], (1, 8, 1, 8))
    golden.close("z_temporal_raw_BD1M", raw["z_temporal_raw_BD1M"].mT[:, :, None], (1, 8, 1, 16))


def check_ids(tokenizer, golden, latents, spatial, temporal):
    """Ids are equal, or their words are as near as the golden words within 1e-6; at least 99.5% are equal."""
    layout = tokenizer.layout
    ours = layout.to_local(tokenizer.ids(spatial, temporal))
    theirs = golden.integers("indices")[None]
    assert (ours == theirs).double().mean() >= 0.995
    for names, z, quantizer in (
        (("adjective", "noun"), latents[0], tokenizer.spatial_quantizer),
        (("adverb", "verb"), latents[1], tokenizer.temporal_quantizer),
    ):
        for name, half, table in zip(names, z.double().chunk(2, -1), quantizer.tables(), strict=True):
            mine, golden_words = layout.split(ours)[name], layout.split(theirs)[name]
            distances = [(half[:, :, None] - table.double()[words]).square().sum(-1) for words in (mine, golden_words)]
            assert (distances[0] - distances[1]).max() < 1e-6, name
