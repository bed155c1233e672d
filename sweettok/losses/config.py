"""Settings of the losses that several stages share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional  # noqa: UP035  (OmegaConf reads these annotations)

from sweettok.config import choice


@dataclass(frozen=True)
class DiscriminatorConfig:
    """3D patch discriminator."""

    in_channels: int = 3
    base_channels: int = 64
    num_layers: int = 3


@dataclass(frozen=True)
class PerceptualConfig:
    """Frozen network that compares one random frame of each clip."""

    kind: str = "convnext"  # ConvNeXt-S class scores (release), "lpips" (VGG-16; paper), or "none"
    weight: float = 0.1
    weights: Optional[str] = None  # noqa: UP045  (backbone file; null looks in torchvision's cache)
    linear_weights: Optional[str] = None  # noqa: UP045  (LPIPS only: its published linear layers)
    untrained: bool = False  # allow a random network, for tests; never for results

    def __post_init__(self):
        choice("perceptual.kind", self.kind, ("convnext", "lpips", "none"))


@dataclass(frozen=True)
class AdversarialConfig:
    """Hinge game against the 3D discriminator; every factor that the release multiplies in is written out here."""

    generator_weight: float = 0.01
    feature_matching_weight: float = 0.04
    discriminator_weight: float = 0.01
    start_step: int = 20000


@dataclass(frozen=True)
class PixelLossConfig:
    """Terms between a clip and its reconstruction; the defaults are those of stage 2."""

    reconstruction: str = "l2"
    reconstruction_weight: float = 4.0
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)

    def __post_init__(self):
        choice("loss.reconstruction", self.reconstruction, ("l1", "l2"))
