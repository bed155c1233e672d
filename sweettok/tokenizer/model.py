"""SweetTok: a clip becomes a short string of words and comes back.

    patches -> spatial queries  -> adjectives + noun  --+
            -> temporal queries -> adverbs + verb     --+-> logits over proxy codes -> pixels

An image takes the upper path alone, to logits of one slice.

Letters: B batch, T frames, H W pixels, t h w latent grid, S spatial queries, M temporal queries, K proxy codes,
L ids per clip, V words, C width of a code.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sweettok import convert, pixels
from sweettok.config import to_dict
from sweettok.hub import Pretrained
from sweettok.layers.initialisation import init_linears
from sweettok.priors.graph import Prior, WordGraph
from sweettok.priors.io import load_prior
from sweettok.proxy.model import PixelDecoder, ProxyTokenizer
from sweettok.tokenizer.card import CARD
from sweettok.tokenizer.codebook import LanguageCodebook
from sweettok.tokenizer.config import TokenizerConfig, WordsConfig
from sweettok.tokenizer.decoder import QueryDecoder
from sweettok.tokenizer.doors import Doors, Source
from sweettok.tokenizer.encoder import QueryEncoder
from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.output import EmbeddingMatrix, QueryFeatures, TokenOutput
from sweettok.tokenizer.quantizer import LanguageQuantizer, Quantized
from sweettok.tokenizer.release import TOKENIZER, check_published
from sweettok.tokenizer.resize import resized


class Prediction(NamedTuple):
    """One pass up to the proxy's codes."""

    logits: Tensor  # (B, K, t, h, w)
    spatial: Quantized
    temporal: Quantized | None  # None for images

    @property
    def lookups(self) -> tuple[Quantized, ...]:
        """Those that there are."""
        return (self.spatial,) if self.temporal is None else (self.spatial, self.temporal)


class SweetTok(Pretrained, Doors):
    """The tokenizer. `encode` and `decode` are exact inverses on the side of the ids, for any batch size.

    An image, a clip of one frame, has spatial ids alone, and is decoded without the blocks that read temporal latents.
    Spatial pretraining trains this path; stages 1 and 2 and the published weights know clips only, and what they make
    of images is untrained: for them, repeat the image to a clip.

    Args:
        config: sizes and recipe.
        prior: the word graphs; the sizes that `config.words` names must match it. The spatial graph alone makes a
            tokenizer that is the spatial branch alone and takes images only.
    """

    config_class = TokenizerConfig
    card_info = CARD

    def __init__(self, config: TokenizerConfig, prior: Prior | WordGraph):
        super().__init__()
        self.config = config = replace(config, words=check_words(config.words, prior))
        spatial, temporal = (prior.spatial, prior.temporal) if isinstance(prior, Prior) else (prior, None)
        motion = temporal is not None
        self.encoder = QueryEncoder(config, motion)
        self.spatial_quantizer = quantizer(config, spatial)
        self.temporal_quantizer = None if temporal is None else quantizer(config, temporal)
        self.decoder = QueryDecoder(config, motion)
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
            self.encoder.spatial_queries,
            self.encoder.spatial_positions,
            self.encoder.temporal_queries,
            self.encoder.temporal_positions,
            self.decoder.spatial_positions,
            self.decoder.temporal_positions,
            self.decoder.positions,
            self.decoder.mask_token,
        ):
            if tokens is not None:
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
        if proxy is not None:
            if not isinstance(proxy, ProxyTokenizer):
                proxy = ProxyTokenizer.from_release(proxy, model.config.proxy)
            model.use_proxy(proxy)
            state = {name: value for name, value in state.items() if not name.startswith("pixel_decoder.")}
        model.load_state_dict({**model.state_dict(), **convert.import_weights(state, released, TOKENIZER)})
        return model.eval()

    def to_release(self) -> dict[str, Tensor]:
        """Published names -> tensors, complete for a strict load elsewhere; the inverse of `from_release`.

        Word vectors and graphs are not part of published weights; a stage-1 tokenizer leaves its pixel decoder out.
        The spatial branch alone gives the parts that a pretrained spatial branch has, to start stage 1 from.
        ValueError for another lookup than the release's.
        """
        check_published(self.config)
        released = convert.export_weights(self.state_dict(), TOKENIZER)
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
        """Fit fresh weights to the proxy (see `use_proxy`) and to float clips (B, 3, T, H, W), before any training.

        Images fit the spatial branch alone.
        """
        for branch, deviation in self.encoder.start_centred(video).items():
            quantizer = self.quantizers[branch]
            quantizer.codebook.start_spread(deviation, quantizer.list_sizes)
        self.decoder.start_head(self._pixel_decoder().codebook.embeddings)

    def assets(self) -> dict[str, Any]:
        return {"words": {branch: quantizer.codebook.graph_words for branch, quantizer in self.quantizers.items()}}

    @classmethod
    def build(cls, config: TokenizerConfig, assets: dict[str, Any], tensors: dict[str, Tensor]) -> SweetTok:
        def graph(branch: str) -> WordGraph:
            modifiers, heads = map(tuple, assets["words"][branch])
            prefix = f"{branch}_quantizer.codebook."
            return WordGraph(modifiers, heads, tensors[f"{prefix}vectors"], tensors[f"{prefix}edges"])

        spatial = graph("spatial")
        return cls(config, Prior(spatial, graph("temporal")) if "temporal" in assets["words"] else spatial)

    @property
    def layout(self) -> TokenLayout:
        """Order, lengths and vocabulary ranges of the ids of a clip; `layout.spatial` is that of an image."""
        words, config, motion = self.config.words, self.config, self.temporal_quantizer is not None
        return TokenLayout(
            config.num_spatial_queries, config.num_temporal_queries if motion else 0,
            words.adjectives or 0, words.nouns or 0, words.adverbs or 0, words.verbs or 0,
            config.modifiers_per_query, config.lookup,
        )  # fmt: skip

    @property
    def vocabulary(self) -> tuple[tuple[str, ...], ...]:
        """The word list of each segment of the layout."""
        return tuple(words for quantizer in self.quantizers.values() for words in quantizer.word_lists)

    @property
    def quantizers(self) -> dict[str, LanguageQuantizer]:
        """Of the spatial branch, and of the temporal one if there is one."""
        spatial, temporal = self.spatial_quantizer, self.temporal_quantizer
        return {"spatial": spatial} if temporal is None else {"spatial": spatial, "temporal": temporal}

    @property
    def vocab_size(self) -> int:
        """Words of all lists together, V: global ids are in [0, V)."""
        return self.layout.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where inputs are moved to."""
        return self.encoder.spatial_queries.device

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
    def prior(self) -> Prior | WordGraph:
        """The word graphs of the codebooks."""
        spatial = self.spatial_quantizer.codebook.graph
        return spatial if self.temporal_quantizer is None else Prior(spatial, self.temporal_quantizer.codebook.graph)

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError, naming what would fit, for a clip or image that this tokenizer cannot take."""
        if self.temporal_quantizer is None and num_frames != 1:
            raise ValueError(
                f"this is the spatial branch alone, which takes images: clips of 1 frame; got {num_frames} frames. "
                "Stage 1 makes a tokenizer of clips from it (init=)"
            )
        # The temporal branch alone is particular about the number of frames.
        self.config.check_clip(self.config.num_frames if num_frames == 1 else num_frames, height, width)

    def quantize(self, video: Tensor) -> tuple[Quantized, Quantized | None]:
        """Float clips (B, 3, T, H, W) -> spatial (B, S, .) and temporal (B, M, .) lookups; no temporal one if T = 1."""
        spatial, temporal = self.encoder(video)
        return self.spatial_quantizer(spatial), None if temporal is None else self.quantizers["temporal"](temporal)

    def predict(self, video: Tensor) -> Prediction:
        """Clips (B, 3, T, H, W) -> logits over the proxy's codes, and the lookups on the way (stage 1).

        Takes what `encode` takes, but does not look whether float values lie in [-0.5, 0.5].
        """
        video = pixels.check_video(pixels.as_clips(video), check_range=False)
        self.check_clip(*video.shape[2:])
        spatial, temporal = self.quantize(video)
        t = self.config.proxy.grid(*video.shape[2:])[0]
        motion = None if temporal is None else temporal.output
        return Prediction(self.decoder(spatial.output, motion, t), spatial, temporal)

    def _pixel_decoder(self) -> PixelDecoder:
        """The pixel decoder; ValueError where there is none."""
        if self.pixel_decoder is None:
            raise ValueError(
                "this tokenizer has no pixel decoder: load stage-2 weights, or give from_release the proxy's file too"
            )
        return self.pixel_decoder

    def to_pixels(self, logits: Tensor) -> Tensor:
        """Logits (B, K, t, h, w) -> float32 pixels (B, 3, T, H, W), not clamped."""
        decoder = self._pixel_decoder()
        if self.config.pixel_path == "argmax":
            return decoder(decoder.codebook(logits.argmax(1)))
        with torch.autocast(logits.device.type, enabled=False):
            vectors = logits.float().movedim(1, -1).softmax(-1) @ decoder.codebook.embeddings
        return decoder(vectors)

    def ids(self, spatial: Quantized, temporal: Quantized | None) -> Tensor:
        """Lookups -> global ids (B, L), in the order of the layout, or of `layout.spatial` for images."""
        if temporal is None:
            return self.layout.spatial.to_global(torch.cat(spatial.ids, dim=1))
        return self.layout.to_global(torch.cat((*spatial.ids, *temporal.ids), dim=1))

    def layout_of(self, ids: Tensor) -> TokenLayout:
        """The layout of an image where `ids` has as many places as one, else that of a clip; checks nothing else."""
        image = self.layout.spatial
        return image if isinstance(ids, Tensor) and ids.shape[1:] == (image.length,) else self.layout

    def codes(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Global ids (B, L) -> quantized latents (B, S, .) and (B, M, .), None for those of images."""
        layout = self.layout_of(ids)
        local = layout.to_local(ids)
        spatial, temporal = layout.by_branch([local[:, segment.places] for segment in layout.segments])
        motion = self.quantizers["temporal"].lookup(*temporal) if temporal else None
        return self.spatial_quantizer.lookup(*spatial), motion

    def describe(self, ids: Tensor) -> TokenOutput:
        """Global ids (B, L), stored or generated -> what `encode` would have given with them.

        Raises ValueError for ids that are not words of their segment's list.
        """
        self.layout_of(ids).check(ids)
        return self._output(ids.long())

    def _output(self, ids: Tensor, num_frames: int | None = None) -> TokenOutput:
        layout = self.layout_of(ids)
        return TokenOutput(ids, layout, self.vocabulary[: len(layout.segments)], self.config.query_grids, num_frames)

    @torch.no_grad()
    def encode(
        self,
        source: Source,
        aspect: str | None = None,
        start: int | None = None,
        stride: int | None = None,
        position: str | None = None,
    ) -> TokenOutput:
        """Clips -> TokenOutput with ids (B, L) int64, on this tokenizer's device.

        Images give spatial ids alone: those of `layout.spatial`.

        Args:
            source: clips (B, 3, T, H, W), uint8 or float in [-0.5, 0.5], on any device; images (B, 3, H, W), or
                (B, 3, 1, H, W); a path; or a list of paths, as one batch. Of a video file one clip is read, of the
                configured frames and size, a shorter file's last frame repeated; of an image file the image.
            aspect: how frames of a file become the configured size: "crop" (default), "pad" or "stretch"; see `Fit`.
            start, stride: of a video file, the first frame and the step from frame to frame (default 1).
            position: of a video file, where its clip is unless `start` says so: "first" (default), "center" or "last".

        Raises ValueError for shapes, types and values that do not fit, for files that cannot be read (ClipError, which
        names the file), for no files, images and videos in one list, and for options of files with tensors.
        """
        video = self._checked(source, aspect=aspect, start=start, stride=stride, position=position)
        return self._output(self.ids(*self.quantize(video)), video.shape[2])

    def _checked(self, source: Source, **options: str | int | None) -> Tensor:
        """What `encode` takes -> float32 clips (B, 3, T, H, W) in [-0.5, 0.5] on this tokenizer's device."""
        self._check_precision()
        video = self.read(source, **options)
        if isinstance(video, Tensor) and video.ndim == 4 and 1 < len(video) == self.config.num_frames:
            told = f"{len(video)} images: if they are the frames of one clip, give video.transpose(0, 1)[None]"
            warnings.warn(told, stacklevel=3)
        video = pixels.as_clips(video)
        video = pixels.check_video(video.to(self.device) if isinstance(video, Tensor) else video)
        self.check_clip(*video.shape[2:])
        return video

    def _check_precision(self) -> None:
        dtype = self.encoder.spatial_queries.dtype
        if dtype != torch.float32:
            raise ValueError(f"weights are {dtype}, expected float32: call .float(), and use torch.autocast for speed")

    @torch.no_grad()
    def decode(self, ids: Tensor | TokenOutput, num_frames: int | None = None) -> Tensor:
        """Global ids (B, L) -> float32 clips (B, 3, T, H, W) clamped to [-0.5, 0.5], on this tokenizer's device.

        The ids of a clip do not tell its length: `num_frames` defaults to that of a TokenOutput, or else to the
        configured one. Those of images are as many as `layout.spatial` has, and give one frame.
        Raises ValueError for ids that are not words of their segment's list.
        """
        if isinstance(ids, TokenOutput):
            num_frames = ids.num_frames if num_frames is None else num_frames
            ids = ids.ids
        self._check_precision()
        layout = self.layout_of(ids)
        layout.check(ids)
        if num_frames is None:
            num_frames = self.config.num_frames if layout.num_temporal else 1
        if layout.num_temporal:
            self.config.check_clip(num_frames, self.config.height, self.config.width)
        elif num_frames != 1:
            raise ValueError(f"{layout.length} ids are those of an image, of 1 frame; got num_frames={num_frames}")
        t = self.config.proxy.grid(num_frames, self.config.height, self.config.width)[0]
        codes = self.codes(ids.to(self.device).long())
        return self.to_pixels(self.decoder(*codes, t)).clamp(-0.5, 0.5)

    def features(self, source: Source) -> QueryFeatures:
        """What `encode` takes -> what the queries read, before the lookup: unit vectors (B, S, .) and (B, M, .).

        They are `config.latent_dim` wide: one code under lookup `union`, else a modifier half and a head half. Query
        n of a branch stands at row n // columns, column n % columns of its grid in `config.query_grids`. Gradients
        flow to weights and video: probes of a frozen tokenizer want `torch.no_grad()`. Raises what `encode` raises.
        """
        return QueryFeatures(*self.encoder(self._checked(source)))

    @torch.no_grad()
    def embedding_matrix(self, offset: int = 0) -> EmbeddingMatrix:
        """All words with their projected vectors (V, C), float32, in the order of global ids, under either lookup.

        For a language model with `table` (rows, width) of embeddings, put them behind its own:

            words = tok.embedding_matrix(offset=len(table))
            table = torch.cat((table, project(words.vectors)))      # project: a layer of yours, C -> width
            tokens = words.to_table(out.ids)                        # and back: words.from_table(tokens)

        In training mode dropout draws the vectors anew at every call. ValueError for a negative offset.
        """
        if offset < 0:
            raise ValueError(f"offset must be at least 0, the rows of the table that come first; got {offset}")
        names = tuple(word for words in self.vocabulary for word in words)
        return EmbeddingMatrix(names, torch.cat([q.codebook() for q in self.quantizers.values()]), offset)

    def vectors(self, ids: Tensor) -> Tensor:
        """Global ids (B, L) -> the projected vector of each (B, L, C), float32, in the order of the ids.

        A query's latent is made of those of its words: the mean of its modifiers' vectors beside its head word's, or
        under lookup `union` its one word's. Raises ValueError for ids that are not words of their segment's list.
        """
        return self.embedding_matrix().vectors[self.describe(ids).ids.to(self.device)]

    def at_size(self, height: int, width: int) -> SweetTok:
        """A copy for frames of another size, in pixels; at the present size it is equal bit for bit.

        The tables of the temporal branch and of the decoder, which have an entry for each place of the latent grid,
        are interpolated (bicubic); nothing else knows the size. The ids of a clip change with it: as many spatial
        ones, each of a larger or smaller part of the frame, and a temporal query per place of the new grid (see
        `num_tokens`). No weight was trained at the new size: train on before you trust it, the more with
        `temporal_peg: scrambled`, whose mixing of places follows the grid. `ids_hash` differs.

        Raises ValueError, with the multiples that fit, for a size that patches and windows do not divide.
        """
        if not (isinstance(height, int) and isinstance(width, int)):
            raise ValueError(f"height and width must be whole numbers of pixels; got {height!r} and {width!r}")
        config = replace(self.config, proxy=replace(self.config.proxy, height=height, width=width))
        model = type(self)(config, self.prior)
        model.load_state_dict(resized(self.state_dict(), self.config.grid[1:], config.grid[1:]))
        return model.to(self.encoder.spatial_queries).train(self.training)

    def forward(self, video: Tensor) -> Tensor:
        """Reconstruction (B, 3, T, H, W) in [-0.5, 0.5]; in evaluation mode it equals decode(encode(video).ids)."""
        return self.to_pixels(self.predict(video).logits).clamp(-0.5, 0.5)


def check_words(words: WordsConfig, prior: Prior | WordGraph) -> WordsConfig:
    """Word-list sizes of the prior; ValueError where the configuration names another size."""
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


def quantizer(config: TokenizerConfig, graph: WordGraph) -> LanguageQuantizer:
    codebook = LanguageCodebook(graph, config.graph_hidden, config.codebook_dim, config.graph_dropout)
    return LanguageQuantizer(codebook, config.modifiers_per_query, config.lookup)
