"""Everything of SweetTok but its forward pass: layout of the ids, checks, saving and loading, initial weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sweettok.config import flatten, to_dict
from sweettok.hub import Pretrained
from sweettok.layers.initialisation import init_linears
from sweettok.priors.graph import Prior, WordGraph, all_words
from sweettok.proxy.model import PixelDecoder
from sweettok.tokenizer.card import CARD
from sweettok.tokenizer.codebook import CODEBOOKS
from sweettok.tokenizer.config import TokenizerConfig, WordsConfig
from sweettok.tokenizer.decoder import Decoder
from sweettok.tokenizer.encoder import Encoder
from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.output import EmbeddingMatrix, LongTokens, TokenOutput
from sweettok.tokenizer.quantizer import LanguageQuantizer
from sweettok.video.clips import ClipMethods
from sweettok.video.long import LongMethods

if TYPE_CHECKING:
    from typing_extensions import Self

# Settings that the ids of a clip tensor do not depend on, and the prefixes of such weights.
NOT_HASHED = (
    *("pixel_path", "head_hidden", "decoder_spatial", "decoder_temporal", "decoder_order", "slice_positions"),
    "preprocessing",
)
NOT_HASHED_WEIGHTS = ("decoder.", "pixel_decoder.")
# Parameters with a row for each position of the latent grid; the size of no other parameter depends on the grid.
GRID_TABLES = (
    "encoder.temporal_queries",
    "encoder.temporal_positions",
    "decoder.temporal_positions",
    "decoder.positions",
)


# Parameters that start as random rows, in the order in which they are drawn.
RANDOM_ROWS = (
    "encoder.spatial_queries",
    "encoder.spatial_positions",
    "encoder.temporal_queries",
    "encoder.temporal_positions",
    "encoder.positions",
    "decoder.spatial_positions",
    "decoder.temporal_positions",
    "decoder.positions",
    "decoder.mask_token",
)


class SweetTokBase(Pretrained, ClipMethods[TokenOutput], LongMethods[LongTokens]):
    """Base of SweetTok, whose constructor makes the parts."""

    config_class = TokenizerConfig
    card_info = CARD
    long_class = LongTokens

    config: TokenizerConfig
    encoder: Encoder
    spatial_quantizer: LanguageQuantizer
    temporal_quantizer: LanguageQuantizer | None  # None in a tokenizer of images
    decoder: Decoder
    pixel_decoder: PixelDecoder | None  # None if config.pixel_path is "none"

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
        """Layout of the ids of a clip of `num_frames` frames; 1 is an image."""
        return self.layout.spatial if num_frames == 1 else self.layout

    def layout_of(self, ids: Tensor) -> TokenLayout:
        """The layout of an image if `ids` (B, L) has its length, else that of a clip, without any check."""
        image = self.layout.spatial
        return image if isinstance(ids, Tensor) and ids.shape[1:] == (image.length,) else self.layout

    @property
    def quantizers(self) -> dict[str, LanguageQuantizer]:
        """Quantizers by branch; only "spatial" in a tokenizer of images."""
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
        """As `describe`, without the check."""
        layout = self.layout_of(ids)
        return TokenOutput(ids, layout, self.vocabulary[: len(layout.segments)], self.config.query_grids, num_frames)

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there."""
        return self.decoder.positions.device

    @property
    def clip_frames(self) -> int:
        """Frames of the configured clip; 1 for a tokenizer of images."""
        return 1 if self.temporal_quantizer is None else self.config.num_frames

    def num_slices(self, num_frames: int) -> int:
        """Length t of the latent grid of a clip of `num_frames` frames."""
        return self.config.proxy.grid(num_frames, self.config.height, self.config.width)[0]

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError for a clip or image of a shape that does not fit; the message names one that does."""
        if self.temporal_quantizer is None and num_frames != 1:
            raise ValueError(
                f"this is the spatial branch alone, which takes images: clips of 1 frame; got {num_frames} frames. "
                "Stage 1 makes a tokenizer of clips from it (init=)"
            )
        # Only the temporal branch restricts the number of frames.
        self.config.check_clip(self.config.num_frames if num_frames == 1 else num_frames, height, width)

    def check_ids(self, ids: Tensor, num_frames: int | None) -> int:
        """Check ids (B, L); return the number of frames that they decode to, `num_frames` or the configured number."""
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
        dtype = self.decoder.positions.dtype
        if dtype != torch.float32:
            raise ValueError(f"weights are {dtype}, expected float32: call .float(), and use torch.autocast for speed")

    def require_pixel_decoder(self) -> PixelDecoder:
        """The pixel decoder. Raises ValueError if there is none."""
        if self.pixel_decoder is None:
            raise ValueError(
                "this tokenizer has no pixel decoder: load stage-2 weights, or give from_release the proxy's file too"
            )
        return self.pixel_decoder

    def assets(self) -> dict[str, Any]:
        """The word lists, which are saved in config.json beside the settings."""
        return {"words": {branch: quantizer.codebook.graph_words for branch, quantizer in self.quantizers.items()}}

    @classmethod
    def build(cls, config: TokenizerConfig, assets: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """A tokenizer with the word graphs of a saved one."""

        def graph(branch: str) -> WordGraph:
            modifiers, heads = map(tuple, assets["words"][branch])
            prefix = codebook_prefix(config, branch)
            return WordGraph(modifiers, heads, tensors[f"{prefix}vectors"], tensors[f"{prefix}edges"])

        spatial = graph("spatial")
        make: Any = cls
        return make(config, Prior(spatial, graph("temporal")) if "temporal" in assets["words"] else spatial)

    def ids_hash(self) -> str:
        """SHA-256 of all weights and settings that the ids depend on.

        Tokenizers with equal hashes give equal ids for every clip tensor. Decoders are left out, so the hash of a
        stage-2 tokenizer equals that of its stage-1 tokenizer.
        """
        # Only settings that differ from their defaults, so that new settings do not change the hash of older models.
        settings, defaults = flatten(to_dict(self.config)), flatten(to_dict(TokenizerConfig()))
        settings = {name: value for name, value in settings.items() if value != defaults.get(name)}
        settings = {
            name: v for name, v in settings.items() if name.removeprefix("proxy.").split(".")[0] not in NOT_HASHED
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if not name.startswith(NOT_HASHED_WEIGHTS):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def init_weights(self) -> None:
        """Linear layers as in `init_linears`; queries and positions normal with standard deviation dim^-0.5.

        The pixel decoder keeps its weights: they come from a trained proxy.
        """
        dim, parameters = self.config.block.dim, dict(self.named_parameters())
        init_linears(self.encoder, dim)
        init_linears(self.decoder, dim)
        for name in RANDOM_ROWS:
            if name in parameters:
                nn.init.normal_(parameters[name], std=dim**-0.5)

    def warm_start(self, video: Tensor) -> None:
        """Fit fresh weights to float clips (B, 3, T, H, W) and to the proxy (see `use_proxy`), before any training.

        Latents and codes are centred on the clips, and the head starts from the proxy's codes. Images fit the spatial
        branch only.
        """
        for branch, deviation in self.encoder.start_centred(video).items():
            quantizer = self.quantizers[branch]
            quantizer.codebook.start_spread(deviation, quantizer.list_sizes)
        self.decoder.start_head(self.require_pixel_decoder().codebook.embeddings)

    def at_size(self, height: int, width: int) -> Self:
        """A copy for frames of another size, in pixels; at the present size it is equal bit for bit.

        Tables with a row for each position of the latent grid are interpolated (bicubic); nothing else depends on the
        size. The ids of a clip change: each spatial query covers a larger or smaller part of the frame, and there is a
        temporal query for each position of the new grid (see `num_tokens`). No weight was trained at the new size:
        train it further before use, especially with `temporal_peg: scrambled`, which depends on the grid. `ids_hash`
        differs.

        Raises ValueError, with the multiples that fit, for a size that patches and windows do not divide, and for
        `compression` flat_queries and linear.
        """
        if not (isinstance(height, int) and isinstance(width, int)):
            raise ValueError(f"height and width must be whole numbers of pixels; got {height!r} and {width!r}")
        config = replace(self.config, proxy=replace(self.config.proxy, height=height, width=width))
        if config.compression != "dqae" and config.grid != self.config.grid:
            raise ValueError(f"with tokenizer.compression {config.compression}, weights are of one size only")
        make: Any = type(self)
        model, state = make(config, self.prior), self.state_dict()
        if config.grid != self.config.grid:
            state |= {
                name: _resized(state[name], self.config.grid, config.grid) for name in GRID_TABLES if name in state
            }
        model.load_state_dict(state)
        return model.to(self.decoder.positions).train(self.training)

    @torch.no_grad()
    def embedding_matrix(self, offset: int = 0) -> EmbeddingMatrix:
        """All words with their projected vectors (V, C), float32, in the order of global ids, with either lookup.

        To append them to the embedding table (rows, width) of a language model:

            words = tok.embedding_matrix(offset=len(table))
            table = torch.cat((table, project(words.vectors)))      # project: your layer, C -> width
            tokens = words.to_table(out.ids)                        # and back: words.from_table(tokens)

        In training mode, dropout gives other vectors at every call. Raises ValueError for a negative offset.
        """
        if offset < 0:
            raise ValueError(f"offset must be at least 0, the rows of the table that come first; got {offset}")
        names = tuple(word for words in self.vocabulary for word in words)
        return EmbeddingMatrix(names, torch.cat([q.codebook() for q in self.quantizers.values()]), offset)

    def vectors(self, ids: Tensor) -> Tensor:
        """Global ids (B, L) -> the projected vector of each (B, L, C), float32, in the order of the ids.

        The latent of a query is made of them: the mean of its modifiers' vectors and the vector of its head word, or
        with lookup union the vector of its one word. Raises ValueError for ids that are not in their segment's range.
        """
        return self.embedding_matrix().vectors[self.describe(ids).ids.to(self.device)]


def _resized(table: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """Table (h w, D) of latent grid `old` (t, h, w), row-major -> that of grid `new`, as positions of ViTs."""
    grid = table.float().T.unflatten(1, old[1:])[None]
    return interpolate(grid, size=new[1:], mode="bicubic", antialias=True)[0].flatten(1).T


def word_graphs(config: TokenizerConfig, prior: Prior | WordGraph) -> tuple[WordGraph, WordGraph | None]:
    """Graphs of the spatial and of the temporal branch: those of the prior, or all its words for both branches.

    ValueError for `codebook` language with the spatial graph alone.
    """
    if config.codebook == "language":
        if not isinstance(prior, Prior):
            raise ValueError("tokenizer.codebook language has the words of both branches: give both word graphs")
        words = all_words(prior)
        return words, words
    return (prior.spatial, prior.temporal) if isinstance(prior, Prior) else (prior, None)


def check_words(words: WordsConfig, spatial: WordGraph, temporal: WordGraph | None) -> WordsConfig:
    """Sizes of the word lists of the branches. Raises ValueError if `words` has another size."""
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


def make_quantizer(
    config: TokenizerConfig, graph: WordGraph, other: LanguageQuantizer | None = None
) -> LanguageQuantizer:
    """The quantizer of a branch, over the codebook of its word graph, or that of the `other` branch (language)."""
    if config.codebook == "language" and other is not None:
        return LanguageQuantizer(other.codebook, config.modifiers_per_query, config.lookup, shared=True)
    codebook = CODEBOOKS[config.codebook](graph, config.graph_hidden, config.codebook_dim, config.graph_dropout)
    return LanguageQuantizer(codebook, config.modifiers_per_query, config.lookup)


def codebook_prefix(config: TokenizerConfig, branch: str) -> str:
    """Where the state dict holds the codebook of a branch."""
    return f"{'spatial' if config.codebook == 'language' else branch}_quantizer.codebook."
