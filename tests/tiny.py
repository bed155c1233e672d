"""Tiny models, word graphs and clips, made by rule: the same numbers on every machine and version of torch.

`PYTHONPATH=. python tests/tiny.py` writes tests/values.json, the outputs of these models that tests/test_tokenizer.py
holds them to. Write it anew only when a change of the numbers is meant.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sweettok.losses import terms as losses
from sweettok.priors.graph import Prior, WordGraph
from sweettok.proxy.config import BlockConfig, ProxyConfig
from sweettok.proxy.model import ProxyTokenizer
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.model import SweetTok

VALUES = Path(__file__).with_name("values.json")
SCALES = ("weight", "gamma", "q_scale", "k_scale", "counts")
# Standard deviations that make tiny models lively: many different words, logits that are neither flat nor one-hot.
SPREAD = {
    "queries": 2.0,
    "positions": 1.0,
    "mask_token": 1.0,
    "embeddings": 0.5,
    "sums": 0.5,
    "conv2.lin.weight": 0.1,
    "head.3.weight": 0.6,
    "first_frame.weight": 0.06,
    "tubes.weight": 0.06,
}


def normal(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Standard normal float64 numbers that depend on the name, the shape and the seed alone."""
    return np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape)


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every entry of `model` but the word graphs its rule-made value, and put the model into evaluation mode.

    Scales are 1 +- 0.1, other vectors +- 0.1, matrices normal / sqrt(fan-in), tables as in SPREAD.
    """
    state = {}
    for name, old in model.state_dict().items():
        if not old.dtype.is_floating_point or name.endswith("vectors"):
            continue
        g = normal(name, tuple(old.shape), seed)
        spread = next((factor for end, factor in SPREAD.items() if name.endswith(end)), None)
        if spread is not None:
            g = g * spread
        elif old.ndim <= 1:
            g = 0.1 * g + name.endswith(SCALES)
        else:
            g = g / np.sqrt(np.prod(old.shape[1:]))
        state[name] = torch.from_numpy(g).to(old.dtype)
    model.load_state_dict({**model.state_dict(), **state})
    return model.eval()


def block(dim: int = 24, **changes) -> BlockConfig:
    """Inner width 16 differs from `dim`, so that neither can stand in for the other."""
    return BlockConfig(**{"dim": dim, "num_heads": 2, "head_dim": 8, "ff_mult": 2.0, "window_size": 2, **changes})


def proxy_config(height: int = 16, width: int = 16, num_frames: int = 9, **changes) -> ProxyConfig:
    """Latent grid (3, 4, 4)."""
    return ProxyConfig(
        **{
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "patch_size": 4,
            "temporal_patch_size": 4,
            "block": block(20),
            "encoder_spatial": "tw",
            "encoder_temporal": "tt",
            "decoder_temporal": "tt",
            "decoder_spatial": "tt",
            "num_codes": 32,
            "code_dim": 4,
            **changes,
        }
    )


def tokenizer_config(proxy: ProxyConfig | None = None, **changes) -> TokenizerConfig:
    """4 spatial queries (2x2) and 16 temporal ones: 60 ids a clip."""
    return TokenizerConfig(
        **{
            "proxy": proxy or proxy_config(),
            "block": block(),
            "encoder_spatial": "twt",
            "encoder_temporal": "tt",
            "decoder_spatial": "tttt",
            "decoder_temporal": "tt",
            "spatial_query_grid": (2, 2),
            "head_hidden": 20,
            "codebook_dim": 8,
            "graph_hidden": 10,
            **changes,
        }
    )


def union_config(**changes) -> TokenizerConfig:
    """One word per query: 20 ids a clip."""
    return tokenizer_config(**{"lookup": "union", **changes})


def word_graph(modifier: str, modifiers: int, head: str, heads: int, dim: int) -> WordGraph:
    """Made-up words "adj0", "adj1", ...; random edges, one of them twice, one reversed, one from a word to itself."""
    total = modifiers + heads
    vectors = torch.from_numpy(normal(modifier + head, (total, dim))).float()
    rng = np.random.RandomState(total)
    pairs = [(a, modifiers + rng.randint(heads)) for a in range(modifiers) for _ in range(2)]
    pairs += [pairs[0], pairs[1][::-1], (3, 3)]
    names = (tuple(f"{word}{i}" for i in range(count)) for word, count in ((modifier, modifiers), (head, heads)))
    return WordGraph(*names, vectors, torch.tensor(pairs).T.contiguous())


def prior() -> Prior:
    """11 adjectives and 13 nouns with 6-wide vectors; 7 adverbs and 17 verbs with 5-wide ones."""
    return Prior(word_graph("adj", 11, "noun", 13, 6), word_graph("adv", 7, "verb", 17, 5))


def proxy(config: ProxyConfig | None = None, seed: int = 0) -> ProxyTokenizer:
    return fill(ProxyTokenizer(config or proxy_config()), seed)


def tokenizer(config: TokenizerConfig | None = None, seed: int = 0) -> SweetTok:
    return fill(SweetTok(config or tokenizer_config(), prior()), seed)


def clip(seed: int = 0, num_frames: int = 9, height: int = 16, width: int = 16) -> Tensor:
    """(1, 3, T, H, W) float in [-0.5, 0.5]: moving waves of three channels."""
    rng = np.random.RandomState(seed)
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    channels = [
        np.sin(a * x + b * y + w * t + p)
        for a, b, w, p in zip(*rng.uniform(-1, 1, (3, 3)), rng.uniform(0, 6.28, 3), strict=True)
    ]
    return torch.from_numpy(0.5 * np.stack(channels)).float()[None]


def clips(*seeds: int, **size) -> Tensor:
    return torch.cat([clip(seed, **size) for seed in seeds])


def stage1_loss(model: SweetTok, video: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy to the proxy's codes plus the quantizer losses of all four halves."""
    prediction = model.predict(video)
    halves = (*prediction.spatial.halves, *prediction.temporal.halves)
    quantizer = sum(losses.quantizer_loss(z, code).total for z, code in halves)
    return losses.proxy_cross_entropy(prediction.logits, codes) + quantizer


def relative_error(ours: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """||ours - expected|| / ||expected||, in float64."""
    ours, expected = (x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (ours, expected))
    assert ours.shape == expected.shape, f"{ours.shape} against {expected.shape}"
    return float(np.linalg.norm(ours.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))


def sample(x: Tensor, count: int = 24) -> list[float]:
    """About `count` values of x, evenly spaced in memory order."""
    flat = x.detach().double().flatten()
    return flat[:: max(1, len(flat) // count)].tolist()


def values() -> dict[str, list]:
    """Numbers of one clip through the tiny tokenizer and the tiny proxy; ids and codes are complete."""
    video, model, teacher = clip(), tokenizer(), proxy()
    prediction = model.predict(video)
    spatial, temporal = model.encoder(video)
    codes = teacher.encode(video)
    loss = stage1_loss(model, video, codes)
    loss.backward()
    grads = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    return {
        "z_spatial": sample(spatial),
        "z_temporal": sample(temporal),
        "codes_spatial": sample(model.spatial_quantizer.codebook()),
        "codes_temporal": sample(model.temporal_quantizer.codebook()),
        "ids": model.encode(video).ids[0].tolist(),
        "logits": sample(prediction.logits),
        "video": sample(model.to_pixels(prediction.logits)),
        "stage1_loss": [loss.item()],
        "gradient_norms": torch.stack([grads[name] for name in sorted(grads)]).tolist(),
        "proxy_features": sample(teacher.features(video)),
        "proxy_codes": codes[0].flatten().tolist(),
        "proxy_video": sample(teacher.decode(codes)),
        "proxy_image": sample(teacher.decode(teacher.encode(video[:, :, 0]))),
    }


if __name__ == "__main__":
    VALUES.write_text(json.dumps(values(), indent=None).replace("], ", "],\n ") + "\n", encoding="utf-8")
