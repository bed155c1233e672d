"""SweetTok: a clip becomes a short string of words and comes back.

    patches -> spatial queries  -> adjectives + noun  --+
            -> temporal queries -> adverbs + verb     --+-> logits over proxy codes -> pixels

Letters: B batch, T frames, H W pixels, t h w latent grid, S spatial queries, M temporal queries, K proxy codes,
L ids per clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sweettok import convert, pixels
from sweettok.config import TokenizerConfig, WordsConfig, to_dict
from sweettok.layout import TokenLayout
from sweettok.models.attention import init_linears
from sweettok.models.codebook import LanguageCodebook
from sweettok.models.decoder import QueryDecoder
from sweettok.models.encoder import QueryEncoder
from sweettok.models.proxy import PixelDecoder, ProxyTokenizer
from sweettok.models.quantizer import LanguageQuantizer, Quantized
from sweettok.pretrained import Pretrained
from sweettok.priors.graph import Prior, WordGraph
from sweettok.priors.io import load_prior


@dataclass(frozen=True)
class TokenOutput:
    """Ids (B, L) int64 of a batch of clips, and what they mean."""

    ids: Tensor
    layout: TokenLayout
    vocabulary: tuple[tuple[str, ...], ...]  # the word list of each segment of the layout

    def words(self, clip: int = 0, max_queries: int | None = None) -> dict[str, list[str]]:
        """What each query of one clip says: {"spatial": ["small red | square", ...], "temporal": [...]}.

        Modifiers, nearest first, stand before the bar and the head word after it; one word of the union stands alone.
        `max_queries` limits each list.
        """
        split = self.layout.split(self.layout.to_local(self.ids[clip][None].cpu()))
        said = [
            [" ".join(names[i] for i in query) for query in words[0, :max_queries].tolist()]
            for words, names in zip(split.values(), self.vocabulary, strict=True)
        ]
        spatial, temporal = by_branch(said)
        return {
            "spatial": [" | ".join(parts) for parts in zip(*spatial, strict=True)],
            "temporal": [" | ".join(parts) for parts in zip(*temporal, strict=True)],
        }


class Prediction(NamedTuple):
    """One pass up to the proxy's codes."""

    logits: Tensor  # (B, K, t, h, w)
    spatial: Quantized
    temporal: Quantized


class SweetTok(Pretrained, nn.Module):
    """The tokenizer. `encode` and `decode` are exact inverses on the side of the ids, for any batch size.

    Args:
        config: sizes and recipe.
        prior: the word graphs; the sizes that `config.words` names must match it.
    """

    config_class = TokenizerConfig

    def __init__(self, config: TokenizerConfig, prior: Prior):
        super().__init__()
        self.config = config = replace(config, words=check_words(config.words, prior))
        self.encoder = QueryEncoder(config)
        self.spatial_quantizer = quantizer(config, prior.spatial)
        self.temporal_quantizer = quantizer(config, prior.temporal)
        self.decoder = QueryDecoder(config)
        self.pixel_decoder = None if config.pixel_path == "none" else PixelDecoder(config.proxy)
        self.init_weights()

    def init_weights(self) -> None:
        """Linear layers as in `init_linears`; tokens and positions normal with deviation dim^-0.5.

        The pixel decoder is left alone: it comes from a trained proxy.
        """
        dim = self.config.block.dim
        for branch in (self.encoder, self.decoder):
            init_linears(branch, dim)
        for tokens in (
            self.encoder.spatial_queries, self.encoder.spatial_positions, self.encoder.temporal_queries,
            self.encoder.temporal_positions, self.decoder.spatial_positions, self.decoder.temporal_positions,
            self.decoder.positions, self.decoder.mask_token,
        ):
            nn.init.normal_(tokens, std=dim**-0.5)

    @classmethod
    def from_release(
        cls,
        weights: str | Path | Mapping[str, Any],
        priors: str | Path | Prior,
        config: TokenizerConfig | None = None,
        proxy: str | Path | Mapping[str, Any] | ProxyTokenizer | None = None,
    ) -> SweetTok:
        """Load published weights, from a file or a mapping of their names to arrays; strict (see `sweettok.convert`).

        Args:
            weights: stage 2, or stage 1, which holds no pixel decoder.
            priors: folder with the word graphs (published pickles or the native format), or the prior itself.
            config: sizes, if not the release's; ValueError for another lookup than the release's.
            proxy: for stage-1 weights, the proxy they were trained on; without it `decode` is not available.
        """
        config = config or TokenizerConfig()
        check_published(config)
        released = convert.read_weights(weights)
        prior = priors if isinstance(priors, Prior) else load_prior(priors)
        has_pixels = any(name.startswith("pixel_") for name in released)
        if has_pixels and proxy is not None:
            raise ValueError("these weights hold a pixel decoder of their own: leave `proxy` out")
        path = "expected" if has_pixels else "none" if proxy is None else "argmax"
        model = cls(replace(config, pixel_path=path), prior)
        state = model.state_dict()
        if path == "argmax":
            if not isinstance(proxy, ProxyTokenizer):
                proxy = ProxyTokenizer.from_release(proxy, model.config.proxy)
            model.use_proxy(proxy)
            state = {name: value for name, value in state.items() if not name.startswith("pixel_decoder.")}
        model.load_state_dict({**model.state_dict(), **convert.import_weights(state, released, convert.TOKENIZER)})
        return model.eval()

    def to_release(self) -> dict[str, Tensor]:
        """Published names -> tensors, complete for a strict load elsewhere; the inverse of `from_release`.

        Word vectors and graphs are not part of published weights; a stage-1 tokenizer leaves its pixel decoder out.
        ValueError for another lookup than the release's.
        """
        from sweettok.models.release import released_state

        check_published(self.config)
        released = released_state(self, convert.TOKENIZER)
        if self.config.pixel_path == "argmax":
            released = {name: value for name, value in released.items() if not name.startswith("pixel_")}
        return released

    def use_proxy(self, proxy: ProxyTokenizer) -> None:
        """Take over the pixel decoder and the codes of a trained proxy; ValueError if it has other sizes."""
        ours = self.config.proxy
        theirs = replace(proxy.config, num_frames=ours.num_frames, height=ours.height, width=ours.width)
        if self.pixel_decoder is None or theirs != ours:
            room = "no pixel decoder (pixel_path none)" if self.pixel_decoder is None else f"room for {ours}"
            raise ValueError(f"this tokenizer has {room}, but the proxy is {proxy.config}")
        self.pixel_decoder.load_state_dict(proxy.decoder.state_dict())

    def warm_start(self, video: Tensor) -> None:
        """Fit fresh weights to the proxy (see `use_proxy`) and to float clips (B, 3, T, H, W), before any training."""
        deviations = self.encoder.start_centred(video)
        for quantizer, deviation in zip((self.spatial_quantizer, self.temporal_quantizer), deviations, strict=True):
            quantizer.codebook.start_spread(deviation, quantizer.list_sizes)
        self.decoder.start_head(self.pixel_decoder.codebook.embeddings)

    def assets(self) -> dict[str, Any]:
        spatial, temporal = self.spatial_quantizer.codebook, self.temporal_quantizer.codebook
        return {"words": {"spatial": spatial.graph_words, "temporal": temporal.graph_words}}

    @classmethod
    def build(cls, config: TokenizerConfig, assets: dict[str, Any], tensors: dict[str, Tensor]) -> SweetTok:
        def graph(branch: str) -> WordGraph:
            modifiers, heads = map(tuple, assets["words"][branch])
            prefix = f"{branch}_quantizer.codebook."
            return WordGraph(modifiers, heads, tensors[f"{prefix}vectors"], tensors[f"{prefix}edges"])

        return cls(config, Prior(graph("spatial"), graph("temporal")))

    @property
    def layout(self) -> TokenLayout:
        """Order, lengths and vocabulary ranges of the ids."""
        words, config = self.config.words, self.config
        return TokenLayout(
            config.num_spatial_queries, config.num_temporal_queries,
            words.adjectives, words.nouns, words.adverbs, words.verbs, config.modifiers_per_query, config.lookup,
        )

    def ids_hash(self) -> str:
        """SHA-256 of all that ids depend on, which is all but decoder and pixels: stage 2 keeps the hash of stage 1.

        Tokenizers of one hash give the same ids for every clip, and decode each other's.
        """
        free = ("pixel_path", "head_hidden", "decoder_spatial", "decoder_temporal")
        settings = {name: value for name, value in to_dict(self.config).items() if name not in free}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if not name.startswith(("decoder.", "pixel_decoder.")):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def prior(self) -> Prior:
        """The word graphs of the codebooks."""
        return Prior(self.spatial_quantizer.codebook.graph, self.temporal_quantizer.codebook.graph)

    def quantize(self, video: Tensor) -> tuple[Quantized, Quantized]:
        """Float clips (B, 3, T, H, W) -> spatial (B, S, .) and temporal (B, M, .) lookups."""
        spatial, temporal = self.encoder(video)
        return self.spatial_quantizer(spatial), self.temporal_quantizer(temporal)

    def predict(self, video: Tensor) -> Prediction:
        """Clips (B, 3, T, H, W) -> logits over the proxy's codes, and the lookups on the way (stage 1).

        Takes what `encode` takes, but does not look whether float values lie in [-0.5, 0.5].
        """
        video = pixels.check_video(video, check_range=False)
        self.config.check_clip(*video.shape[2:])
        spatial, temporal = self.quantize(video)
        t = self.config.proxy.grid(*video.shape[2:])[0]
        return Prediction(self.decoder(spatial.output, temporal.output, t), spatial, temporal)

    def to_pixels(self, logits: Tensor) -> Tensor:
        """Logits (B, K, t, h, w) -> float32 pixels (B, 3, T, H, W), not clamped."""
        if self.pixel_decoder is None:
            raise ValueError(
                "this tokenizer has no pixel decoder: load stage-2 weights, or give from_release the proxy's file too"
            )
        if self.config.pixel_path == "argmax":
            return self.pixel_decoder(self.pixel_decoder.codebook(logits.argmax(1)))
        with torch.autocast(logits.device.type, enabled=False):
            vectors = logits.float().movedim(1, -1).softmax(-1) @ self.pixel_decoder.codebook.embeddings
        return self.pixel_decoder(vectors)

    def ids(self, spatial: Quantized, temporal: Quantized) -> Tensor:
        """Lookups -> global ids (B, L), in the order of the layout."""
        return self.layout.to_global(torch.cat((*spatial.ids, *temporal.ids), dim=1))

    def codes(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Global ids (B, L) -> quantized latents (B, S, .) and (B, M, .)."""
        local = self.layout.to_local(ids)
        spatial, temporal = by_branch([local[:, segment.places] for segment in self.layout.segments])
        return self.spatial_quantizer.lookup(*spatial), self.temporal_quantizer.lookup(*temporal)

    @torch.no_grad()
    def encode(self, video: Tensor) -> TokenOutput:
        """Clips (B, 3, T, H, W), uint8 or float in [-0.5, 0.5] -> TokenOutput with ids (B, L) int64.

        Raises ValueError for shapes, types and values that do not fit.
        """
        video = pixels.check_video(video)
        self.config.check_clip(*video.shape[2:])
        vocabulary = (*self.spatial_quantizer.word_lists, *self.temporal_quantizer.word_lists)
        return TokenOutput(self.ids(*self.quantize(video)), self.layout, vocabulary)

    @torch.no_grad()
    def decode(self, ids: Tensor, num_frames: int | None = None) -> Tensor:
        """Global ids (B, L) -> float32 clips (B, 3, T, H, W) clamped to [-0.5, 0.5].

        The ids of a clip do not tell its length: `num_frames` defaults to the configured one.
        Raises ValueError for ids that are not words of their segment's list.
        """
        self.layout.check(ids)
        num_frames = self.config.num_frames if num_frames is None else num_frames
        self.config.check_clip(num_frames, self.config.height, self.config.width)
        t = self.config.proxy.grid(num_frames, self.config.height, self.config.width)[0]
        return self.to_pixels(self.decoder(*self.codes(ids.long()), t)).clamp(-0.5, 0.5)

    def forward(self, video: Tensor) -> Tensor:
        """Reconstruction (B, 3, T, H, W) in [-0.5, 0.5]; in evaluation mode it equals decode(encode(video).ids)."""
        return self.to_pixels(self.predict(video).logits).clamp(-0.5, 0.5)


def check_words(words: WordsConfig, prior: Prior) -> WordsConfig:
    """Word-list sizes of the prior; ValueError where the configuration names another size."""
    found = {
        "adjectives": prior.spatial.num_modifiers, "nouns": prior.spatial.num_heads,
        "adverbs": prior.temporal.num_modifiers, "verbs": prior.temporal.num_heads,
    }
    wrong = [
        f"{name}: {getattr(words, name)} configured, {size} in the prior"
        for name, size in found.items()
        if getattr(words, name) not in (None, size)
    ]
    if wrong:
        raise ValueError(f"the prior does not fit the configuration ({'; '.join(wrong)}): give the matching prior")
    return WordsConfig(**found)


def quantizer(config: TokenizerConfig, graph: WordGraph) -> LanguageQuantizer:
    codebook = LanguageCodebook(graph, config.graph_hidden, config.codebook_dim, config.graph_dropout)
    return LanguageQuantizer(codebook, config.modifiers_per_query, config.lookup)


def by_branch(segments: list) -> tuple[list, list]:
    """What the layout's segments hold, in their order -> that of the spatial and that of the temporal branch."""
    half = len(segments) // 2
    return segments[:half], segments[half:]


def check_published(config: TokenizerConfig) -> None:
    """ValueError for a tokenizer that published weights cannot fill."""
    if config.lookup == "union":
        raise ValueError(
            "published weights are of lookup modifiers_and_head, and tokenizer.lookup is union: their latents are two "
            "codes wide instead of one. Use folders written by save_pretrained or by training"
        )
