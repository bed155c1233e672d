"""Inflated 3-D Inception (Carreira and Zisserman 2017), whose 400 class scores are the features of FVD.

Module names are those of the published file `i3d_pretrained_400.pt`, the Kinetics-400 RGB network of TensorFlow Hub.
Letters: N clips, T frames, H W pixels, C channels, t h w the grid inside the network.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.convert import read_weights

SIZE = 224  # height and width of the input in pixels
MIN_FRAMES = 9  # the last pooling window needs two steps in time
NUM_CLASSES = 400
RESIZES = ("stretch", "crop")
# Output channels of the branches b0, b1a, b1b, b2a, b2b, b3b of each Inception block.
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def preprocess(video: Tensor, resize: str = "stretch", antialias: bool = False) -> Tensor:
    """Frames (N, T, H, W, 3), uint8 or float in [0, 255] -> float32 (N, 3, T, 224, 224) in [-1, 1].

    Args:
        resize: bilinear resizing. "stretch" ignores the aspect ratio (rFVD of the release); "crop" scales the shorter
            side to 224, rounding the other side up, and crops the centre (gFVD of the release).
        antialias: antialiased resizing when frames shrink (release: no).
    """
    if resize not in RESIZES:
        raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {resize!r}")
    n, _, height, width, _ = video.shape
    frames = video.flatten(0, 1).movedim(-1, 1).float()
    bilinear = {"mode": "bilinear", "align_corners": False, "antialias": antialias}
    if resize == "stretch":
        frames = F.interpolate(frames, (SIZE, SIZE), **bilinear)
        frames = 2 * frames / 255 - 1
    else:
        shorter = min(height, width)
        scaled = tuple(-(-side * SIZE // shorter) for side in (height, width))
        frames = F.interpolate(frames / 255, scaled, **bilinear)
        top, left = ((side - SIZE) // 2 for side in scaled)
        frames = (frames[..., top : top + SIZE, left : left + SIZE] - 0.5) * 2
    return frames.unflatten(0, (n, -1)).movedim(2, 1)


def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad (N, C, t, h, w) with zeros by TensorFlow's SAME rule: an odd zero goes to the end."""
    padding = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):  # last axis first, as F.pad wants
        total = max(k - (size % s or s), 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def convolutions(tf32: bool):
    """Context in which convolutions may use TF32, or not; other cuDNN settings keep their values."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=tf32
    )


class Unit(nn.Module):
    """Convolution, batch normalisation with running statistics, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, eps: float, stride: int = 1):
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)))


class MaxPool(nn.Module):
    """Max pooling with SAME padding. Inputs have passed a ReLU, so padding with zeros is correct."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Inception block of four parallel branches."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], eps: float):
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = channels
        self.b0 = Unit(in_channels, b0, 1, eps)
        self.b1a = Unit(in_channels, b1a, 1, eps)
        self.b1b = Unit(b1a, b1b, 3, eps)
        self.b2a = Unit(in_channels, b2a, 1, eps)
        self.b2b = Unit(b2a, b2b, 3, eps)
        self.b3a = MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit(in_channels, b3b, 1, eps)
        self.out_channels = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))), dim=1)


class I3D(nn.Module):
    """Frozen detector: uint8 clips -> 400 class scores. Layers run in the order of their definition.

    batch_norm_eps: 1e-5 as in common FVD code; the original TensorFlow graph has 1e-3.
    """

    def __init__(self, batch_norm_eps: float = 1e-5):
        super().__init__()
        self.batch_norm_eps = batch_norm_eps
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, batch_norm_eps, stride=2)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64, 1, batch_norm_eps)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3, batch_norm_eps)
        channels = 192
        pools = {
            "Mixed_3b": ("MaxPool3d_3a_3x3", MaxPool((1, 3, 3), (1, 2, 2))),
            "Mixed_4b": ("MaxPool3d_4a_3x3", MaxPool((3, 3, 3), (2, 2, 2))),
            "Mixed_5b": ("MaxPool3d_5a_2x2", MaxPool((2, 2, 2), (2, 2, 2))),
        }
        for name, widths in MIXED.items():
            if name in pools:
                self.add_module(*pools[name])
            block = Mixed(channels, widths, batch_norm_eps)
            self.add_module(name, block)
            channels = block.out_channels
        self.avg_pool = nn.AvgPool3d((2, 7, 7), stride=1)
        self.logits = nn.Sequential(OrderedDict(conv3d=nn.Conv3d(channels, NUM_CLASSES, 1)))
        self.requires_grad_(False)
        self.train(False)

    @classmethod
    def from_release(cls, weights: str | Path | Mapping[str, Tensor], batch_norm_eps: float = 1e-5) -> I3D:
        """Load the weights of `i3d_pretrained_400.pt`, given as a path or as a mapping of its entries.

        Entries `num_batches_tracked` may be missing. Raises FileNotFoundError, or ValueError for other weights.
        """
        model = cls(batch_norm_eps)
        own = model.state_dict()
        state = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
        state |= read_weights(weights)
        shapes = [{name: tuple(value.shape) for name, value in entries.items()} for entries in (state, own)]
        wrong = [
            f"{name} ({shapes[0].get(name, 'absent')} given, {shapes[1].get(name, 'no such entry')} expected)"
            for name in sorted(own.keys() | state.keys())
            if shapes[0].get(name) != shapes[1].get(name)
        ]
        if wrong:
            listed = ", ".join(wrong[:5] + ["..."] * (len(wrong) > 5))
            reason = f"{len(wrong)} of {len(own)} entries differ: {listed}"
            raise ValueError(f"these are not the weights of i3d_pretrained_400.pt: {reason}")
        model.load_state_dict(state)
        return model

    def train(self, mode: bool = True) -> I3D:
        """Stay in eval mode: the statistics of the detector must not change."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, video: Tensor, resize: str = "stretch", antialias: bool = False) -> Tensor:
        """uint8 (N, T, H, W, 3) with T >= 9, RGB -> float32 class scores (N, 400), averaged over time.

        `resize`, `antialias`: see `preprocess`. Runs without TF32, which would change the scores by 1e-3.
        """
        if not isinstance(video, Tensor) or video.dtype != torch.uint8 or video.ndim != 5 or video.shape[-1] != 3:
            got = f"{video.dtype} {tuple(video.shape)}" if isinstance(video, Tensor) else type(video).__name__
            raise ValueError(f"I3D expects uint8 frames of shape (N, T, H, W, 3), got {got}")
        if video.shape[1] < MIN_FRAMES:
            raise ValueError(f"I3D needs clips of at least {MIN_FRAMES} frames, got {video.shape[1]}")
        with convolutions(tf32=False):
            return self.scores(preprocess(video, resize, antialias))

    @torch.no_grad()
    def scores(self, frames: Tensor) -> Tensor:
        """Output of `preprocess` -> float32 class scores (N, 400), without autocast; TF32 as set by the caller."""
        with torch.autocast(frames.device.type, enabled=False):
            for layer in self.children():
                frames = layer(frames)
        return frames.mean(dim=2).flatten(1)


class ScriptedI3D:
    """The TorchScript detector of StyleGAN-V, `i3d_torchscript.pt`: the same network, with resizing included."""

    def __init__(self, script: torch.jit.ScriptModule):
        self.script = script

    @classmethod
    def load(cls, path: str | Path) -> ScriptedI3D:
        """Load the file onto the CPU. FileNotFoundError, or ValueError for a file that is not TorchScript."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no weights at {path}")
        try:
            return cls(torch.jit.load(str(path), map_location="cpu").eval())
        except RuntimeError as error:
            raise ValueError(f"{path} is no TorchScript file: {str(error).splitlines()[0]}") from error

    def to(self, device: torch.device) -> ScriptedI3D:
        self.script = self.script.to(device)
        return self

    @torch.no_grad()
    def scores(self, frames: Tensor, inside: bool = False) -> Tensor:
        """Output of `preprocess` -> class scores (N, 400).

        inside: frames are (N, 3, T, H, W) of any size in [0, 255]; the TorchScript module scales and resizes them.
        """
        return self.script(x=frames.float(), rescale=inside, resize=inside, return_features=True).float()
