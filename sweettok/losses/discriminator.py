"""3D patch discriminator of the release, with batch statistics over all processes on any device.

Letters: B clips, T frames, H W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.distributed import add_up, distributed, gather_rows, rank
from sweettok.losses.config import DiscriminatorConfig


class _GatherProcesses(torch.autograd.Function):
    """Stack a tensor of every process on a new first axis; its gradient is summed over the processes."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return gather_rows(value[None])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return add_up(gradient.contiguous())[rank()]


class SyncedBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation whose training statistics are over the batches of all processes.

    Equals `nn.BatchNorm3d` on one process and in eval mode, and has its state names. Unlike `nn.SyncBatchNorm` it also
    runs on CPUs, with any backend. Every process must call it equally often in training mode.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(num_features, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, T, H, W) -> same shape."""
        if not (self.training and distributed()):
            return super().forward(x)
        mean, var, count = self._global_statistics(x)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift.view(1, -1, 1, 1, 1), x, scale.view(1, -1, 1, 1, 1))

    def _global_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and biased variance of each channel over all processes, and the number of values behind them.

        Processes may hold batches of different sizes. Their variances are combined around the global mean, since a
        mean of squares would cancel.
        """
        var, mean = torch.var_mean(x, dim=(0, 2, 3, 4), correction=0)
        size = mean.new_full((1,), x.numel() // x.shape[1])
        means, variances, sizes = _GatherProcesses.apply(torch.cat([mean, var, size])).split(
            [self.num_features, self.num_features, 1], dim=1
        )
        count = sizes.sum()
        share = sizes / count
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean) ** 2)).sum(0)
        return mean, var, count


class PatchDiscriminatorLayer(nn.Module):
    """4x4x4 convolution, batch normalisation (but for the first layer) and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, normalized: bool = True):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size=4, stride=stride, padding=2)
        self.norm = SyncedBatchNorm3d(out_channels) if normalized else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2, inplace=True)


class PatchDiscriminator(nn.Module):
    """3D PatchGAN: `num_layers` halving layers, one that keeps the size, and one to a single channel of logits.

    As in the release, the logits too pass through batch normalisation and leaky ReLU, so only their shape over a
    batch, not their level, can tell real clips from reconstructions.
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        if config.num_layers < 1:
            raise ValueError(f"discriminator.num_layers must be at least 1, got {config.num_layers}")
        self.in_channels = config.in_channels
        # Widths double up to 8 times the base.
        widths = [config.base_channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        layers = [PatchDiscriminatorLayer(config.in_channels, widths[0], stride=2, normalized=False)]
        layers += [PatchDiscriminatorLayer(widths[i - 1], widths[i], stride=2) for i in range(1, config.num_layers)]
        layers += [PatchDiscriminatorLayer(widths[-2], widths[-1], stride=1)]
        layers += [PatchDiscriminatorLayer(widths[-1], 1, stride=1)]
        self.layers = nn.ModuleList(layers)

    def forward(self, video: Tensor) -> list[Tensor]:
        """Feature maps of all layers, computed in float32, or float64 if given; the last is the logits.

        video: (B, in_channels, T, H, W), nominally in [-0.5, 0.5] and never clamped -> num_layers + 2 maps (5).
        """
        if video.ndim != 5 or video.shape[1] != self.in_channels:
            raise ValueError(f"video must be (B, {self.in_channels}, T, H, W), got {tuple(video.shape)}")
        features = []
        with torch.autocast(video.device.type, enabled=False):
            x = video.to(torch.promote_types(video.dtype, torch.float32))
            for layer in self.layers:
                x = layer(x)
                features.append(x)
        return features
