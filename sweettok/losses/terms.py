"""Terms of the training losses, computed in float32 also under autocast.

Shapes: B clips, C channels, T frames, H x W pixels; t x h x w latent grid; K proxy codes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class QuantizerLoss(NamedTuple):
    """The weighted `total` and its two unweighted terms, named by the part of the model that each trains."""

    total: Tensor
    encoder_side: Tensor
    codebook_side: Tensor


def _check_same_shape(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.shape != other.shape:
        raise ValueError(f"{name} {tuple(value.shape)} and {other_name} {tuple(other.shape)} must have equal shapes")


def proxy_cross_entropy(logits: Tensor, codes: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the code grid. logits: (B, K, t, h, w); codes: (B, t, h, w) int64 in [0, K)."""
    expected = (logits.shape[0], *logits.shape[2:])
    if logits.ndim != 5 or codes.shape != expected:
        raise ValueError(
            f"logits must be (B, K, t, h, w) and codes (B, t, h, w); got {tuple(logits.shape)} and {tuple(codes.shape)}"
        )
    if codes.dtype != torch.int64:
        raise ValueError(f"codes must be int64, got {codes.dtype}")
    rows = logits.float().movedim(1, -1).flatten(0, -2)  # a copy: over a strided view it takes six times as long
    return F.cross_entropy(rows, codes.flatten(), label_smoothing=label_smoothing)


def quantizer_loss(
    z: Tensor, quantized: Tensor, encoder_weight: float = 1.0, codebook_weight: float = 0.25
) -> QuantizerLoss:
    """Mean squared distance of latents and their codes, for the encoder (codes fixed) and the codebook (latents fixed).

    Call it for each half of the channels and add the results. As in the release, the weight of 0.25 is on the
    codebook's term.

    Args:
        z, quantized: of equal shapes; `quantized` is the code before the straight-through estimator.
    """
    _check_same_shape("z", z, "quantized", quantized)
    z, quantized = z.float(), quantized.float()
    encoder_side = F.mse_loss(z, quantized.detach())
    codebook_side = F.mse_loss(quantized, z.detach())
    return QuantizerLoss(encoder_weight * encoder_side + codebook_weight * codebook_side, encoder_side, codebook_side)


def usage_loss(z: Tensor, table: Tensor, temperature: float = 0.05) -> Tensor:
    """How far the choice of words is from uniform: log V minus the entropy of the mean soft choice, at least 0.

    Args:
        z: latents (B, N, C), of the clips that this process sees at once.
        table: codes (V, C) of a word list. A latent chooses word v with probability proportional to
            exp(-|z - code_v|^2 / temperature).
    """
    z, table = z.float().flatten(0, 1), table.float()
    similarity = 2 * z @ table.T - table.square().sum(-1)  # -|z - code|^2, but for |z|^2, which changes no probability
    choice = (similarity / temperature).log_softmax(dim=-1)
    mean = choice.logsumexp(0) - math.log(len(choice))  # logarithms are finite also for words that are never chosen
    return math.log(len(table)) + (mean.exp() * mean).sum()


def reconstruction_loss(video: Tensor, target: Tensor, kind: str = "l2") -> Tensor:
    """Mean squared ("l2") or absolute ("l1") error over all elements. video, target: equal shapes."""
    _check_same_shape("video", video, "target", target)
    return (F.mse_loss if kind == "l2" else F.l1_loss)(video.float(), target.float())


def perceptual_frame_indices(batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """A random frame index for each clip and its reconstruction: (batch,) int64 in [0, frames)."""
    return torch.randint(frames, (batch,), generator=generator, device=generator.device)


def pick_frames(video: Tensor, indices: Tensor) -> Tensor:
    """Frame `indices[b]` of clip b. video: (B, C, T, H, W); indices: (B,) -> (B, C, H, W)."""
    if video.ndim != 5 or indices.shape != video.shape[:1]:
        raise ValueError(
            f"video must be (B, C, T, H, W) and indices (B,); got {tuple(video.shape)} and {tuple(indices.shape)}"
        )
    clips = torch.arange(len(indices), device=video.device)
    return video[clips, :, indices.to(video.device, non_blocking=True)]


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator: half of mean(relu(1 - real)) + mean(relu(1 + fake))."""
    return 0.5 * (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean())


def generator_adversarial_loss(fake_logits: Tensor) -> Tensor:
    """The generator's adversarial loss: the negative mean logit of its reconstructions."""
    return -fake_logits.float().mean()


def feature_matching_loss(fake_features: Sequence[Tensor], real_features: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the discriminator's feature maps, summed over all maps but the last (the logits).

    No gradient flows into `real_features`.
    """
    pairs = zip(fake_features[:-1], real_features[:-1], strict=True)
    return sum(F.l1_loss(fake.float(), real.detach().float()) for fake, real in pairs)


class WordLosses(NamedTuple):
    """For each word, (B, R) float32: `smoothed` is the training loss, `plain` the cross-entropy for perplexities."""

    smoothed: Tensor
    plain: Tensor
    correct: Tensor  # 1 where the most likely id is the target


def word_losses(logits: Tensor, targets: Tensor, label_smoothing: float) -> WordLosses:
    """logits (B, R, V), targets (B, R) -> losses of each word, in nats (release: MLMLoss is the mean of `smoothed`).

    Label smoothing is over all V ids, so the smoothed loss cannot reach 0.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        total = logits.logsumexp(-1)
        plain = total - logits.gather(-1, targets[..., None]).squeeze(-1)
        smoothed = (1 - label_smoothing) * plain + label_smoothing * (total - logits.mean(-1))
    return WordLosses(smoothed, plain.detach(), (logits.detach().argmax(-1) == targets).float())
