"""Settings of the losses that several stages share."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sweettok.config import choice


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The 3D patch discriminator."""

    in_channels: int = 3  # colours of a clip
    base_channels: int = 64  # width of the first layer; it doubles with each layer, up to 8 times
    num_layers: int = 3  # layers that halve time, height and width


@dataclass(frozen=True)
class QuantizerLossConfig:
    """Losses between latents and codes of words."""

    quantizer_weight: float = 1.0  # multiplies both sides of the quantizer loss
    encoder_side_weight: float = 1.0  # moves latents towards their codes
    codebook_side_weight: float = 0.25  # moves codes towards the latents that chose them
    # Keeps all words in use: the distance of the choice of words from a uniform one. Not in the release.
    usage_weight: float = 0.0

    def weighted(self, terms: dict[str, Tensor]) -> dict[str, tuple[float, Tensor]]:
        """{name: term} of `quantizer_terms` -> {name: (weight, term)}."""
        weights = {
            "quantizer_encoder_side": self.quantizer_weight * self.encoder_side_weight,
            "quantizer_codebook_side": self.quantizer_weight * self.codebook_side_weight,
            "usage": self.usage_weight,
        }
        return {name: (weights[name], term) for name, term in terms.items()}


@dataclass(frozen=True)
class PerceptualConfig:
    """The perceptual loss: distance of one random frame of each clip to its reconstruction in a frozen network."""

    kind: str = "convnext"  # ConvNeXt-S class scores (release), "lpips" (VGG-16; paper), "efficientnet", or "none"
    weight: float = 0.1  # factor of the loss
    weights: str | None = None  # file of the network's weights; null: in torchvision's cache (efficientnet: package)
    linear_weights: str | None = None  # of LPIPS only: file of its linear layers; null: in torchvision's cache
    untrained: bool = False  # use a random network, for tests; never for results

    def __post_init__(self):
        choice("perceptual.kind", self.kind, ("convnext", "lpips", "efficientnet", "none"))


@dataclass(frozen=True)
class AdversarialConfig:
    """Hinge losses of generator and discriminator. The weights include every factor of the release."""

    generator_weight: float = 0.01  # of the generator's adversarial loss
    feature_matching_weight: float = 0.04  # of the distance of the discriminator's feature maps
    discriminator_weight: float = 0.01  # of the discriminator's own loss
    start_step: int = 20000  # step at which the discriminator starts


@dataclass(frozen=True)
class PixelLossConfig:
    """Losses between a clip and its reconstruction."""

    reconstruction: str = "l2"  # "l2" (mean squared error) or "l1" (mean absolute error)
    reconstruction_weight: float = 4.0  # factor of that loss
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)

    def __post_init__(self):
        choice("loss.reconstruction", self.reconstruction, ("l1", "l2"))
