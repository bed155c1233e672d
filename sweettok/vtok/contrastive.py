"""An image encoder trained with a text encoder on pairs of frame and caption, as CLIP (arXiv 2103.00020).

Letters: B clips, F frames of each, H W pixels, N ids, E width of the embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from sweettok.config import positive, whole
from sweettok.pixels import to_float
from sweettok.vtok.model import VTok
from sweettok.vtok.text import encode

MOST_SCALE = 100.0  # of similarities, as in CLIP


@dataclass(frozen=True)
class TextConfig:
    """The text encoder of open_clip's CLIP; it is not part of the exported model."""

    width: int = 96  # channels
    layers: int = 2  # transformer blocks
    heads: int = 3  # attention heads; must divide `width`
    vocab_size: int = 512  # most ids of the tokenizer, which is trained on the captions of frames
    context_length: int = 48  # ids of a caption; longer ones are cut

    def __post_init__(self) -> None:
        positive(self, "text", "width", "layers", "heads")
        whole(self, "text", 260, "vocab_size")
        whole(self, "text", 3, "context_length")
        if self.width % self.heads:
            raise ValueError(f"text.width {self.width} does not divide into {self.heads} heads")


class Pairs(NamedTuple):
    """Embeddings of unit length (B, F, E) of frames and captions, their scale, and logits of facts (B, F, facts)."""

    image: Tensor
    text: Tensor
    scale: Tensor
    facts: Tensor


class ContrastiveModel(nn.Module):
    """The image encoder of a VTok, a text encoder, and a linear layer that reads facts from the features of VTok.

    The linear layer shows what the features hold; no gradient goes through them.

    Args:
        vtok: its encoder is trained in place.
        tokenizer: of the captions.
        rates: share of the training frames in which each fact is true.
    """

    rates: Tensor

    def __init__(self, vtok: VTok, text: TextConfig, tokenizer: Any, rates: Tensor):
        super().__init__()
        import open_clip

        sizes = {"width": text.width, "layers": text.layers, "heads": text.heads, "context_length": text.context_length}
        ids = {"vocab_size": text.vocab_size, "pool_type": "eos", "eos_id": tokenizer.eos_token_id}
        clip = open_clip.CLIP(**vtok.sizes, text_cfg={**sizes, **ids, "pad_id": tokenizer.pad_token_id})
        clip.visual = vtok.encoder.visual.train().requires_grad_(True)
        self.clip, self.block, self.grid = clip, vtok.config.block, vtok.config.grid
        self.register_buffer("mean", vtok.encoder.mean, persistent=False)
        self.register_buffer("std", vtok.encoder.std, persistent=False)
        self.register_buffer("rates", rates)
        self.readout = nn.Linear(vtok.dim * math.prod(self.grid), len(rates))

    def forward(self, image: Tensor, text: Tensor) -> Pairs:
        """uint8 images (B, F, 3, H, W) and ids (B, F, N) -> Pairs."""
        shape = image.shape[:2]
        pixels = (to_float(image.flatten(0, 1)) + 0.5 - self.mean) / self.std
        found = self.clip.visual.forward_intermediates(pixels, indices=[self.block], output_fmt="NCHW")
        features = adaptive_avg_pool2d(found["image_intermediates"][0].detach(), self.grid).flatten(1)
        facts = self.readout(F.layer_norm(features, features.shape[1:]))
        image = F.normalize(found["image_features"], dim=-1)
        scale = self.clip.logit_scale.exp().clamp(max=MOST_SCALE)
        return Pairs(image.unflatten(0, shape), self.embed(text), scale, facts.unflatten(0, shape))

    def embed(self, text: Tensor) -> Tensor:
        """Ids (..., N) -> embeddings of unit length (..., E)."""
        return self.clip.encode_text(text.flatten(0, -2), normalize=True).unflatten(0, text.shape[:-1])


class CaptionIds:
    """A caption -> ids (N,): begin, caption, end, padding."""

    def __init__(self, tokenizer: Any, length: int):
        self.tokenizer, self.length = tokenizer, length

    def __call__(self, caption: str) -> Tensor:
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = [begin, *encode(self.tokenizer, caption)[: self.length - 2], end]
        return torch.tensor(ids + [self.tokenizer.pad_token_id] * (self.length - len(ids)))


def contrastive_loss(pairs: Pairs, text: Tensor, group: int) -> Tensor:
    """Symmetric cross-entropy among the frames and captions of each group of `group` clips, a scalar.

    Args:
        text: ids (B, F, N) of the captions; equal captions fit each other's frames equally well.
    """
    image, words, ids = (part.unflatten(0, (-1, group)).flatten(1, 2) for part in (pairs.image, pairs.text, text))
    logits = pairs.scale * image @ words.transpose(1, 2)
    equal = (ids[:, :, None] == ids[:, None]).all(-1).to(logits.dtype)
    target = equal / equal.sum(-1, keepdim=True)
    losses = [-(target * side.log_softmax(-1)).sum(-1).mean() for side in (logits, logits.transpose(1, 2))]
    return sum(losses) / 2
