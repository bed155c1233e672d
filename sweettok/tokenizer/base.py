"""What surrounds the forward pass of SweetTok: its layout, its checks, and how it is saved and loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sweettok.config import to_dict
from sweettok.hub import Pretrained
from sweettok.priors.graph import Prior, WordGraph
from sweettok.proxy.model import PixelDecoder
from sweettok.tokenizer.card import CARD
from sweettok.tokenizer.codebook import LanguageCodebook
from sweettok.tokenizer.config import TokenizerConfig, WordsConfig
from sweettok.tokenizer.decoder import QueryDecoder
from sweettok.tokenizer.encoder import QueryEncoder
from sweettok.tokenizer.initialisation import warm_start
from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.output import LongTokens, TokenOutput
from sweettok.tokenizer.quantizer import LanguageQuantizer
from sweettok.tokenizer.resize import resized
from sweettok.video.clips import ClipMethods
from sweettok.video.long import LongMethods

if TYPE_CHECKING:
    from typing_extensions import Self

# Settings that ids of a clip tensor do not depend on, and the prefixes of such weights.
NOT_HASHED = ("pixel_path", "head_hidden", "decoder_spatial", "decoder_temporal", "preprocessing")
NOT_HASHED_WEIGHTS = ("decoder.", "pixel_decoder.")


class SweetTokBase(Pretrained, ClipMethods[TokenOutput], LongMethods[LongTokens]):
    """Base of SweetTok, whose constructor makes the parts."""

    config_class = TokenizerConfig
    card_info = CARD
    long_class = LongTokens

    config: TokenizerConfig
    encoder: QueryEncoder
    spatial_quantizer: LanguageQuantizer
    temporal_quantizer: LanguageQuantizer | None  # None in a tokenizer of images
    decoder: QueryDecoder
    pixel_decoder: PixelDecoder | None  # None if config.pixel_path is "none"

    # ------------------------------------------------------------------------------------------------ words and ids

    @property
    def layout(self) -> TokenLayout:
        """Order, lengths and vocabulary ranges of the ids of a clip; `layout.spatial` is that of an image."""
        words, config, motion = self.config.words, self.config, self.temporal_quantizer is not None
        return TokenLayout(
            num_spatial=config.num_spatial_queries,
            num_temporal=config.num_temporal_queries if motion else 0,
            adjectives=words.adjectives or 0,
            nouns=words.nouns or 0,
            adverbs=words.adverbs or 0,
            verbs=words.verbs or 0,
            modifiers_per_query=config.modifiers_per_query,
            lookup=config.lookup,
        )

    def clip_layout(self, num_frames: int) -> TokenLayout:
        """Layout of the ids of a clip of so many frames; 1 is an image."""
        return self.layout.spatial if num_frames == 1 else self.layout

    def layout_of(self, ids: Tensor) -> TokenLayout:
        """The layout of an image if `ids` (B, L) has its length, else that of a clip; nothing else is checked."""
        image = self.layout.spatial
        return image if isinstance(ids, Tensor) and ids.shape[1:] == (image.length,) else self.layout

    @property
    def quantizers(self) -> dict[str, LanguageQuantizer]:
        """Branch -> its quantizer; "spatial" alone in a tokenizer of images."""
        spatial, temporal = self.spatial_quantizer, self.temporal_quantizer
        return {"spatial": spatial} if temporal is None else {"spatial": spatial, "temporal": temporal}

    @property
    def vocabulary(self) -> tuple[tuple[str, ...], ...]:
        """The word list of each segment of the layout."""
        return tuple(words for quantizer in self.quantizers.values() for words in quantizer.word_lists)

    @property
    def vocab_size(self) -> int:
        """Number of words of all lists, V: global ids are in [0, V)."""
        return self.layout.vocab_size

    @property
    def prior(self) -> Prior | WordGraph:
        """The word graphs of the codebooks."""
        spatial = self.spatial_quantizer.codebook.graph
        return spatial if self.temporal_quantizer is None else Prior(spatial, self.temporal_quantizer.codebook.graph)

    def describe(self, ids: Tensor) -> TokenOutput:
        """Global ids (B, L), stored or generated -> the TokenOutput that `encode` returns with these ids.

        Raises ValueError for ids that are not in their segment's range.
        """
        self.layout_of(ids).check(ids)
        return self.output(ids.long())

    def output(self, ids: Tensor, num_frames: int | None = None) -> TokenOutput:
        """As `describe`, for ids that need no check."""
        layout = self.layout_of(ids)
        return TokenOutput(ids, layout, self.vocabulary[: len(layout.segments)], self.config.query_grids, num_frames)

    # ---------------------------------------------------------------------------------------------- shapes and checks

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there."""
        return self.encoder.spatial_queries.device

    @property
    def clip_frames(self) -> int:
        """Frames of the configured clip; 1 for a tokenizer of images."""
        return 1 if self.temporal_quantizer is None else self.config.num_frames

    def num_slices(self, num_frames: int) -> int:
        """Length t of the latent grid of a clip of so many frames."""
        return self.config.proxy.grid(num_frames, self.config.height, self.config.width)[0]

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError, naming what would fit, for a clip or image that this tokenizer cannot take."""
        if self.temporal_quantizer is None and num_frames != 1:
            raise ValueError(
                f"this is the spatial branch alone, which takes images: clips of 1 frame; got {num_frames} frames. "
                "Stage 1 makes a tokenizer of clips from it (init=)"
            )
        # Only the temporal branch restricts the number of frames.
        self.config.check_clip(self.config.num_frames if num_frames == 1 else num_frames, height, width)

    def check_ids(self, ids: Tensor, num_frames: int | None) -> int:
        """The number of frames to decode `ids` to; ValueError for other ids and for numbers that do not fit."""
        layout = self.layout_of(ids)
        layout.check(ids)
        if num_frames is None:
            num_frames = self.config.num_frames if layout.num_temporal else 1
        if layout.num_temporal:
            self.config.check_clip(num_frames, self.config.height, self.config.width)
        elif num_frames != 1:
            raise ValueError(f"{layout.length} ids are those of an image, of 1 frame; got num_frames={num_frames}")
        return num_frames

    def check_precision(self) -> None:
        """Raise ValueError unless weights are float32."""
        dtype = self.encoder.spatial_queries.dtype
        if dtype != torch.float32:
            raise ValueError(f"weights are {dtype}, expected float32: call .float(), and use torch.autocast for speed")

    def require_pixel_decoder(self) -> PixelDecoder:
        """The pixel decoder; ValueError if there is none."""
        if self.pixel_decoder is None:
            raise ValueError(
                "this tokenizer has no pixel decoder: load stage-2 weights, or give from_release the proxy's file too"
            )
        return self.pixel_decoder

    # ------------------------------------------------------------------------------------------------ folders, weights

    def assets(self) -> dict[str, Any]:
        """The word lists, which config.json holds beside the settings."""
        return {"words": {branch: quantizer.codebook.graph_words for branch, quantizer in self.quantizers.items()}}

    @classmethod
    def build(cls, config: TokenizerConfig, assets: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """A tokenizer with the word graphs of a saved one."""

        def graph(branch: str) -> WordGraph:
            modifiers, heads = map(tuple, assets["words"][branch])
            prefix = f"{branch}_quantizer.codebook."
            return WordGraph(modifiers, heads, tensors[f"{prefix}vectors"], tensors[f"{prefix}edges"])

        spatial = graph("spatial")
        make: Any = cls
        return make(config, Prior(spatial, graph("temporal")) if "temporal" in assets["words"] else spatial)

    def ids_hash(self) -> str:
        """SHA-256 of all weights and settings that ids depend on; decoders are left out, so stage 2 keeps it.

        Tokenizers with equal hashes give equal ids for every clip tensor, and decode each other's.
        """
        settings = {name: value for name, value in to_dict(self.config).items() if name not in NOT_HASHED}
        settings["proxy"] = {name: value for name, value in settings["proxy"].items() if name not in NOT_HASHED[-1:]}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if not name.startswith(NOT_HASHED_WEIGHTS):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def warm_start(self, video: Tensor) -> None:
        """Fit fresh weights to the proxy (see `use_proxy`) and to float clips (B, 3, T, H, W), before any training.

        Images fit the spatial branch alone.
        """
        warm_start(self.encoder, self.quantizers, self.decoder, self.require_pixel_decoder(), video)

    def at_size(self, height: int, width: int) -> Self:
        """A copy for frames of another size, in pixels; at the present size it is equal bit for bit.

        Tables with an entry per place of the latent grid are interpolated (bicubic); nothing else depends on the size.
        The ids of a clip change: each of the spatial ones covers a larger or smaller part of the frame, and there is a
        temporal query per place of the new grid (see `num_tokens`). No weight was trained at the new size: train it
        further before use, especially with `temporal_peg: scrambled`, which depends on the grid. `ids_hash` differs.

        Raises ValueError, with the multiples that fit, for a size that patches and windows do not divide.
        """
        if not (isinstance(height, int) and isinstance(width, int)):
            raise ValueError(f"height and width must be whole numbers of pixels; got {height!r} and {width!r}")
        config = replace(self.config, proxy=replace(self.config.proxy, height=height, width=width))
        make: Any = type(self)
        model = make(config, self.prior)
        model.load_state_dict(resized(self.state_dict(), self.config.grid[1:], config.grid[1:]))
        return model.to(self.encoder.spatial_queries).train(self.training)


def check_words(words: WordsConfig, prior: Prior | WordGraph) -> WordsConfig:
    """The sizes of the word lists of a prior; ValueError where the configuration has another size."""
    spatial, temporal = (prior.spatial, prior.temporal) if isinstance(prior, Prior) else (prior, None)
    found = {"adjectives": spatial.num_modifiers, "nouns": spatial.num_heads}
    if temporal is not None:
        found |= {"adverbs": temporal.num_modifiers, "verbs": temporal.num_heads}
    wrong = [
        f"{name}: {getattr(words, name)} configured, {size} in the prior"
        for name, size in found.items()
        if getattr(words, name) not in (None, size)
    ]
    if wrong:
        raise ValueError(f"the prior does not fit the configuration ({'; '.join(wrong)}): give the matching prior")
    return WordsConfig(**found)


def make_quantizer(config: TokenizerConfig, graph: WordGraph) -> LanguageQuantizer:
    """The quantizer of a branch, over the codebook of its word graph."""
    codebook = LanguageCodebook(graph, config.graph_hidden, config.codebook_dim, config.graph_dropout)
    return LanguageQuantizer(codebook, config.modifiers_per_query, config.lookup)
