"""Inputs of the golden training numbers, made by rule, and networks filled by the same rule."""

import json

import torch

from sweettok.losses.config import DiscriminatorConfig
from sweettok.losses.discriminator import PatchDiscriminator
from sweettok.losses.perceptual import ConvNeXtPerceptual

# Our layer names -> the names by which the golden discriminator was filled.
DISCRIMINATOR_NAMES = {
    "layers.0.conv": "model0.0",
    "layers.1.conv": "model1.1",
    "layers.1.norm": "model1.2",
    "layers.2.conv": "model2.1",
    "layers.2.norm": "model2.2",
    "layers.3.conv": "model3.0",
    "layers.3.norm": "model3.1",
    "layers.4.conv": "model4.0",
    "layers.4.norm": "model4.1",
}
PERCEPTUAL_FRAMES = [3, 11]


def wave(amplitude, rates, phase, shape):
    """amplitude * sin(phase + sum of rate * index) over `shape`, in float64, cast to float32."""
    angle = torch.full(shape, phase, dtype=torch.float64)
    for axis, (rate, size) in enumerate(zip(rates, shape, strict=True)):
        view = [1] * len(shape)
        view[axis] = size
        angle = angle + rate * torch.arange(size, dtype=torch.float64).view(view)
    return (amplitude * torch.sin(angle)).float()


def golden_clips():
    """The two clips (2, 3, 17, 64, 64) that all golden loss values are about: real and fake."""
    shape = (2, 3, 17, 64, 64)
    real = wave(0.5, (0.7, 1.3, 0.11, 0.053, 0.031), 0.0, shape)
    fake = wave(0.45, (0.5, 1.1, 0.09, 0.047, -0.029), 0.3, shape)
    return real, fake


def golden_json(golden_folder):
    return json.loads((golden_folder / "training.json").read_text())


def golden_discriminator(golden_rule):
    """The default discriminator, filled by the rule on the release's bare names."""
    model = PatchDiscriminator(DiscriminatorConfig())
    state = model.state_dict()
    for name, value in state.items():
        layer, _, entry = name.rpartition(".")
        if value.is_floating_point():
            state[name] = torch.from_numpy(golden_rule.value(f"{DISCRIMINATOR_NAMES[layer]}.{entry}", value.shape))
    model.load_state_dict(state)
    return model


def golden_convnext(golden_rule):
    """The perceptual network, filled by the rule on torchvision's names."""
    shapes = {name: value.shape for name, value in ConvNeXtPerceptual(untrained=True).network.state_dict().items()}
    return ConvNeXtPerceptual({name: torch.from_numpy(value) for name, value in golden_rule.fill(shapes).items()})


def assert_statistics(value, expected, atol=1e-5):
    """Compare a tensor with the statistics {mean, std, absmean, min, max, first4} recorded of the release's."""
    value = value.detach().double()
    found = {
        "mean": value.mean(),
        "std": value.std(correction=0),
        "absmean": value.abs().mean(),
        "min": value.min(),
        "max": value.max(),
        "first4": value.flatten()[:4],
    }
    for name, number in expected.items():
        torch.testing.assert_close(
            found[name], torch.tensor(number, dtype=torch.float64), atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
