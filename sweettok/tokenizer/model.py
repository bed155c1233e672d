"""SweetTok: clips to short sequences of words, and back to clips (arXiv 2412.10443).

    patches -> spatial queries  -> adjectives + noun  --+
            -> temporal queries -> adverbs + verb     --+-> logits over proxy codes -> pixels

An image uses the upper path only, and gives the logits of one time slice. `config.compression` and `config.codebook`
replace parts of this picture by what the paper compares them with.

Letters: B batch, T frames, H W pixels, t h w latent grid, S spatial queries, M temporal queries, K proxy codes,
L ids per clip, C width of a code.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sweettok import pixels
from sweettok.layers.precision import without_autocast
from sweettok.priors.graph import Prior, WordGraph
from sweettok.proxy.model import PixelDecoder
from sweettok.tokenizer.base import check_words, make_quantizer, word_graphs
from sweettok.tokenizer.compression import make_decoder, make_encoder
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.output import QueryFeatures, TokenOutput
from sweettok.tokenizer.packages import write_packages
from sweettok.tokenizer.quantizer import Quantized
from sweettok.tokenizer.release import ReleaseMethods
from sweettok.video.clips import Source


class Prediction(NamedTuple):
    """Result of `SweetTok.predict`."""

    logits: Tensor  # (B, K, t, h, w)
    spatial: Quantized
    temporal: Quantized | None  # None for images

    @property
    def lookups(self) -> tuple[Quantized, ...]:
        """The lookups of the branches that were used."""
        return (self.spatial,) if self.temporal is None else (self.spatial, self.temporal)


class SweetTok(ReleaseMethods):
    """The tokenizer: `encode` turns clips into ids, `decode` turns ids into clips.

    An image is a clip of one frame and has spatial ids only. Only spatial pretraining trains this path; with weights
    trained on clips, such as the published ones, repeat the image to a clip.

    Args:
        config: sizes and recipe.
        prior: the word graphs; the sizes in `config.words` must match it. With the spatial graph alone, it is a
            tokenizer of images, which has only the spatial branch.
    """

    def __init__(self, config: TokenizerConfig, prior: Prior | WordGraph):
        super().__init__()
        spatial, temporal = word_graphs(config, prior)
        self.config = config = replace(config, words=check_words(config.words, spatial, temporal))
        motion = temporal is not None
        self.encoder = make_encoder(config, motion)
        self.spatial_quantizer = make_quantizer(config, spatial)
        self.temporal_quantizer = None if temporal is None else make_quantizer(config, temporal, self.spatial_quantizer)
        self.decoder = make_decoder(config, motion)
        self.pixel_decoder = None if config.pixel_path == "none" else PixelDecoder(config.proxy)
        self.init_weights()

    def forward(self, video: Tensor) -> Tensor:
        """Reconstruction (B, 3, T, H, W) in [-0.5, 0.5]; in evaluation mode it equals decode(encode(video).ids)."""
        return self.to_pixels(self.predict(video).logits).clamp(-0.5, 0.5)

    def predict(self, video: Tensor) -> Prediction:
        """Clips (B, 3, T, H, W) -> logits over the proxy's codes, and the lookups of both branches (stage 1).

        Takes the tensors that `encode` takes, but does not check that float values are in [-0.5, 0.5].
        """
        video = pixels.check_video(pixels.as_clips(video), check_range=False)
        self.check_clip(*video.shape[2:])
        spatial, temporal = self.quantize(video)
        motion = None if temporal is None else temporal.output
        return Prediction(self.decoder(spatial.output, motion, self.num_slices(video.shape[2])), spatial, temporal)

    def quantize(self, video: Tensor) -> tuple[Quantized, Quantized | None]:
        """Float clips (B, 3, T, H, W) -> spatial (B, S, .) and temporal (B, M, .) lookups; no temporal one if T = 1."""
        spatial, temporal = self.encoder(video)
        return self.spatial_quantizer(spatial), None if temporal is None else self.quantizers["temporal"](temporal)

    def to_pixels(self, logits: Tensor) -> Tensor:
        """Logits (B, K, t, h, w) -> float32 pixels (B, 3, T, H, W), not clamped.

        By the expected code vector, or by the most likely code (`config.pixel_path`).
        """
        decoder = self.require_pixel_decoder()
        if self.config.pixel_path == "argmax":
            return decoder(decoder.codebook(logits.argmax(1)))
        with without_autocast(logits.device):
            rows = logits.float().movedim(1, -1)
            parts = (rows,) if torch.is_grad_enabled() else rows.split(1, dim=1)  # by slices, for less memory
            vectors = torch.cat([part.softmax(-1) @ decoder.codebook.embeddings for part in parts], dim=1)
        return decoder(vectors)

    @torch.no_grad()
    def encode(
        self,
        source: Source,
        *,
        resize: str | None = None,
        position: str | None = None,
        start: int | None = None,
        stride: int | None = None,
    ) -> TokenOutput:
        """Clips -> TokenOutput with ids (B, L) int64, on this tokenizer's device. Images give `layout.spatial` ids.

        Args:
            source: clips (B, 3, T, H, W), uint8 or float in [-0.5, 0.5], on any device; images (B, 3, H, W) or
                (B, 3, 1, H, W); a path; or a list of paths, as one batch. From a video file one clip of the configured
                shape is read, from an image file the image.
            resize, position, start, stride: how the clip is made from a file; see `ClipMethods`. By default as in
                training, `config.preprocessing`.

        Raises ValueError for shapes, types and values that do not fit, for files that cannot be read (ClipError, which
        names the file), for images and videos in one list, and for options of files with tensors.
        """
        self.check_precision()
        video = self.prepare(source, resize=resize, position=position, start=start, stride=stride)
        return self.output(self.ids(*self.quantize(video)), video.shape[2])

    def ids(self, spatial: Quantized, temporal: Quantized | None) -> Tensor:
        """Lookups -> global ids (B, L), in the order of the layout, or of `layout.spatial` for images."""
        if temporal is None:
            return self.layout.spatial.to_global(torch.cat(spatial.ids, dim=1))
        return self.layout.to_global(torch.cat((*spatial.ids, *temporal.ids), dim=1))

    @torch.no_grad()
    def decode(self, ids: Tensor | TokenOutput, num_frames: int | None = None) -> Tensor:
        """Global ids (B, L) -> float32 clips (B, 3, T, H, W) in [-0.5, 0.5], on this tokenizer's device.

        `num_frames` is not contained in ids: it defaults to that of the TokenOutput, or else to the configured one.
        Ids of images give one frame. Raises ValueError for ids that are not in their segment's range.
        """
        if isinstance(ids, TokenOutput):
            num_frames = ids.num_frames if num_frames is None else num_frames
            ids = ids.ids
        self.check_precision()
        num_frames = self.check_ids(ids, num_frames)
        codes = self.codes(ids.to(self.device).long())
        return self.to_pixels(self.decoder(*codes, self.num_slices(num_frames))).clamp(-0.5, 0.5)

    def codes(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Global ids (B, L) -> quantized latents (B, S, .) and (B, M, .); the second is None for images."""
        layout = self.layout_of(ids)
        local = layout.to_local(ids)
        spatial, temporal = layout.by_branch([local[:, segment.places] for segment in layout.segments])
        motion = self.quantizers["temporal"].lookup(*temporal) if temporal else None
        return self.spatial_quantizer.lookup(*spatial), motion

    def features(self, source: Source, *, grad: bool = False, **options: Any) -> QueryFeatures:
        """Source of `encode` -> unit vectors of the queries before the lookup: (B, S, latent) and (B, M, latent).

        `config.latent_dim` is one code wide under lookup union, else a modifier half and a head half. Query n of a
        branch is at row n // columns, column n % columns of its grid in `config.query_grids`.

        Args:
            grad: keep the graph, so that gradients reach the encoder's weights and the video.
            options: resize, position, start and stride, as in `encode`, which also lists the errors.
        """
        self.check_precision()
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            return QueryFeatures(*self.encoder(self.prepare(source, **options)))

    def export(self, folder: str | Path) -> list[Path]:
        """Write `encode.pt2` and `decode.pt2`: packages of torch.export with any batch size, without this library.

        `torch.export.load(file).module()` maps float32 clips (B, 3, T, H, W) in [-0.5, 0.5], of the configured shape,
        to ids (B, L), and ids to clips. They run on the device of the weights, and do not check their input. Returns
        the paths. Raises ValueError in training mode, and without a pixel decoder.
        """
        return write_packages(self, folder)
