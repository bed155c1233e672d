"""Every array of the full-size golden runs, met within 1e-5 (pixels after the sharp softmax: 1e-4)."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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

    def __init__(self, folder, rule, name):
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
def proxy_golden(golden_folder, golden_rule):
    return Golden(golden_folder, golden_rule, "proxy_0")


@pytest.fixture(scope="module")
def golden(golden_folder, golden_rule):
    return Golden(golden_folder, golden_rule, "tokenizer_0")


@pytest.fixture(scope="module")
def tokenizer(golden_prior, golden):
    return SweetTok.from_release(golden.weights, priors=golden_prior)


@torch.no_grad()
def test_proxy(proxy_golden):
    golden, clip = proxy_golden, sine_clip(0)
    proxy = ProxyTokenizer.from_release(golden.weights)
    with recorded({"to_code": proxy.to_code}) as found, recorded({"features": proxy.to_code}, inputs=True) as inputs:
        codes = proxy.encode(clip)
    golden.close("features_BDthw", inputs["features"].movedim(-1, 1), (1, 16, 1, 8, 8))
    golden.close("z_BDthw", F.normalize(found["to_code"], dim=-1).movedim(-1, 1), (1, 1, 1, 4, 4))
    assert torch.equal(codes[0], golden.integers("codes_thw"))
    golden.close("video_BCTHW", proxy.decode(codes), (1, 1, 3, 13, 13))
    image_codes = proxy.encode(clip[:, :, 0])
    assert torch.equal(image_codes[0], golden.integers("image_codes_thw"))
    golden.close("image_BCHW", proxy.decode(image_codes)[:, :, 0], (1, 1, 13, 13))
    assert golden.seen == set(golden.arrays)


@torch.no_grad()
def test_tokenizer(tokenizer, golden):
    """Each part runs once: its output is recorded while `predict` and `decode` run."""
    clip, encoder, decoder, pixels = sine_clip(0), tokenizer.encoder, tokenizer.decoder, tokenizer.pixel_decoder
    parts = {
        "latents": encoder,
        "patches": encoder.patches,
        "spatial": encoder.spatial,
        "temporal": encoder.temporal,
        "spatial_raw": encoder.spatial_out[1],
        "temporal_raw": encoder.temporal_out[1],
    }
    with recorded(parts) as found:
        prediction = tokenizer.predict(clip)
    check_encoder(found, golden)
    spatial, temporal = prediction.spatial, prediction.temporal
    golden.close("codes_spatial_KD", tokenizer.spatial_quantizer.codebook(), (64, 8))
    golden.close("codes_temporal_KD", tokenizer.temporal_quantizer.codebook(), (64, 8))
    check_ids(tokenizer, golden, found["latents"], spatial, temporal)
    golden.close("zq_spatial_BD11S", spatial.output.mT[:, :, None, None], (1, 8, 1, 1, 8))
    golden.close("zq_temporal_BD11M", temporal.output.mT[:, :, None, None], (1, 8, 1, 1, 16))
    losses = [quantizer_loss(z, code) for quantized in (spatial, temporal) for z, code in quantized.halves]
    total, encoder_side, codebook_side = (torch.stack(term).sum() for term in zip(*losses, strict=True))
    golden.close("vq_losses", torch.stack((total, 0.25 * codebook_side, encoder_side)), (1,))

    golden.close("proxy_logits_BKthw", prediction.logits, (1, 128, 1, 8, 8))
    assert torch.equal(prediction.logits.argmax(1)[0], golden.integers("proxy_argmax_thw"))
    with recorded({"logits": decoder, "video": pixels}) as found:
        decoded = tokenizer.decode(tokenizer.ids(spatial, temporal))
    assert torch.equal(found["logits"], prediction.logits)
    golden.close("video_BCTHW", found["video"], (1, 1, 3, 13, 13), VIDEO_TOLERANCE)
    assert torch.equal(decoded, found["video"].clamp(-0.5, 0.5))

    codes = torch.from_numpy(np.random.RandomState(55).randint(0, 8192, (1, 5, 32, 32)))
    golden.close("pixel_from_codes_BCTHW", pixels(pixels.codebook(codes)), (1, 1, 3, 13, 13))
    golden.close("pixel_image_BCHW", pixels(pixels.codebook(codes[:, :1]))[:, :, 0], (1, 1, 13, 13))
    assert golden.seen == set(golden.arrays)


@contextmanager
def recorded(modules, inputs=False):
    """A dict that gets the output (or the first input) of each module when the module runs, which it must do once."""
    found = {}

    def hook(name):
        def keep(module, args, output):
            assert name not in found, f"{name} runs twice"
            found[name] = args[0] if inputs else output

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    yield found
    for handle in handles:
        handle.remove()
    assert found.keys() == modules.keys()


def check_encoder(found, golden):
    golden.close("patches_BthwD", found["patches"], (1, 1, 8, 8, 8))
    layers = [x.flatten(0, 1) for x in found["spatial"]]
    layers.append(golden.norm(layers[-1], "encoder.enc_spatial_transformer"))
    for i, x in enumerate(layers):
        golden.close(f"enc_spatial_{i}_TND", x, (1, 67, 16))
    layers = [x.flatten(0, 1) for x in found["temporal"]]
    layers.append(golden.norm(layers[-1], "encoder.enc_temporal_transformer"))
    for i, x in enumerate(layers):
        golden.close(f"enc_temporal_{i}_NtD", x, (67, 1, 16))
    golden.close("z_spatial_raw_BD1S", found["spatial_raw"].mT[:, :, None], (1, 8, 1, 8))
    golden.close("z_temporal_raw_BD1M", found["temporal_raw"].mT[:, :, None], (1, 8, 1, 16))
    spatial, temporal = found["latents"]
    golden.close("z_spatial_BD11S", spatial.mT[:, :, None, None], (1, 8, 1, 1, 8))
    golden.close("z_temporal_BD11M", temporal.mT[:, :, None, None], (1, 8, 1, 1, 16))


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
