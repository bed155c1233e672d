"""Tokenizers that feed a language model: VTok, and SweetTok through an adapter.

Letters: B clips, L tokens, C channels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sweettok.data.reader import is_image, probe
from sweettok.video.clips import Source
from sweettok.vtok.config import check_fps
from sweettok.vtok.output import KEY, MOTION, FrameFeatures, VisualTokens

if TYPE_CHECKING:
    from sweettok.tokenizer.model import SweetTok

UNITS = ("words", "queries")
KINDS = (KEY, MOTION)  # of the spatial and of the temporal branch


class VisualSource(Protocol):
    """What a language model needs of a tokenizer; `VTok` and `WordTokens` have it."""

    dim: int  # C

    def encode(self, source: Source, fps: float | None = None) -> VisualTokens:
        """Clips -> tokens (B, L, C) with times in seconds."""
        ...


class WordTokens:
    """The discrete tokens of SweetTok as vectors: spatial ones as those of a key frame, temporal ones as motion.

    A temporal token describes one place over the whole clip, so its time is the middle of the clip; so is that of
    spatial tokens, or 0 if they describe the first frame.

    Args:
        tokenizer: gives the ids and their vectors.
        unit: "words", one token per id, its row of `embedding_matrix`; or "queries", fewer tokens: the latent of a
            query, made of its words.
    """

    def __init__(self, tokenizer: SweetTok, unit: str = "queries"):
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)}; got {unit!r}")
        self.tokenizer, self.unit = tokenizer, unit
        config = tokenizer.config
        self.dim = config.codebook_dim if unit == "words" else config.latent_dim

    @torch.no_grad()
    def encode(self, source: Source, fps: float | None = None, **options: Any) -> VisualTokens:
        """Source and options of `SweetTok.encode` -> tokens; fps as in `VTok.encode`, of files by default their own.

        Raises ValueError as `SweetTok.encode` does, and for an unknown rate.
        """
        tok, out = self.tokenizer, self.tokenizer.encode(source, **options)
        if self.unit == "words":
            spatial = out.layout.spatial.length
            values, lengths = tok.vectors(out.ids), (spatial, out.ids.shape[1] - spatial)
        else:
            codes = [code for code in tok.codes(out.ids) if code is not None]
            values, lengths = torch.cat(codes, dim=1), [code.shape[1] for code in codes]
        device, clips = values.device, len(values)
        pairs = zip(lengths, KINDS[: len(lengths)], strict=True)  # images have no temporal tokens
        kinds = torch.cat([torch.full((n,), kind, device=device) for n, kind in pairs])
        middle = torch.zeros(clips)
        if out.num_frames is not None and out.num_frames > 1:
            middle = (out.num_frames - 1) / 2 / self._rates(source, fps, options, clips)
        start = torch.zeros_like(middle) if tok.config.spatial_source == "first_frame" else middle
        times = torch.stack((start, middle), dim=1).to(device)[:, kinds]
        return VisualTokens(values.float(), times, kinds, torch.zeros(clips, dtype=torch.int64, device=device))

    def features(self, source: Source, fps: float | None = None, max_frames: int | None = None) -> FrameFeatures:
        """The same tokens in the form in which `sweettok.vtok.cache` stores them; SweetTok reads as many frames as it
        always does, whatever `max_frames`."""
        return stored_form(self.encode(source, fps))

    def features_hash(self) -> str:
        """SHA-256 of everything that the tokens depend on."""
        return hashlib.sha256(f"{self.tokenizer.ids_hash()} {self.unit}".encode()).hexdigest()

    def project(self, features: FrameFeatures) -> VisualTokens:
        """Stored tokens -> tokens."""
        return from_stored(features)

    def _rates(self, source: Source, fps: float | None, options: dict[str, Any], clips: int) -> Tensor:
        """Frames per second of each clip (B,)."""
        if fps is not None:
            check_fps(fps)
        elif isinstance(source, Tensor):
            raise ValueError("fps is unknown: a tensor has no frame rate, give fps=, its number of frames per second")
        if isinstance(source, Tensor):
            return torch.tensor([fps] * clips)
        rates = []
        for path in [source] if isinstance(source, str | Path) else source:
            rate = fps or (None if is_image(path) else probe(path).fps)
            if rate is None:
                raise ValueError(f"{path} has no frame rate: give fps=, its number of frames per second")
            rates.append(rate)
        stride = self.tokenizer.config.preprocessing.override(stride=options.get("stride")).stride
        return torch.tensor(rates) / stride


def stored_form(tokens: VisualTokens) -> FrameFeatures:
    """Tokens of any tokenizer as features that need no projection: residuals of one patch each."""
    key = tokens.kinds == KEY
    values = tokens.values
    return FrameFeatures(values[:, key], values[:, ~key, None], tokens.times, tokens.kinds, tokens.key_frame)


def from_stored(features: FrameFeatures) -> VisualTokens:
    """Inverse of `stored_form`; of residuals of several patches, their mean."""
    values = torch.cat((features.key, features.residuals.mean(2)), dim=1)
    order = features.kinds.argsort(stable=True).argsort()
    return VisualTokens(values[:, order], features.times, features.kinds, features.key_frame)
