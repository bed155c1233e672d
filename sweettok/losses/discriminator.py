"""3D patch discriminator of the release, with batch statistics over all processes on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweettok.distributed import add_up, distributed, gather_rows, rank
from sweettok.losses.config import DiscriminatorConfig


class _GatherProcesses(torch.autograd.Function):
    """Stack the tensors of all processes on a new first axis; the backward pass sums gradients over the processes."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return gather_rows(value[None])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return add_up(gradient.contiguous())[rank()]


class SyncedBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation whose training statistics are over the batches of all processes.

    Equals `nn.BatchNorm3d` on one process and in eval mode, and has its state names. Unlike `nn.SyncBatchNorm` it also
    runs on CPUs, and its variance is accurate for large means. In training, all processes must call it equally often;
    their batches may differ in size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, T, H, W) -> same shape."""
        if not (self.training and distributed()):
            return super().forward(x)
        var, mean = torch.var_mean(x, dim=(0, 2, 3, 4), correction=0)
        size = mean.new_full((1,), x.numel() // x.shape[1])
        gathered = _GatherProcesses.apply(torch.cat([mean, var, size]))
        means, variances, sizes = gathered.split([self.num_features, self.num_features, 1], dim=1)
        count = sizes.sum()
        share = sizes / count
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean) ** 2)).sum(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift.view(1, -1, 1, 1, 1), x, scale.view(1, -1, 1, 1, 1))


class PatchDiscriminatorLayer(nn.Module):
    """4x4x4 convolution, optional batch normalisation, and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, normalized: bool = True):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size=4, stride=stride, padding=2)
        self.norm = SyncedBatchNorm3d(out_channels) if normalized else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2, inplace=True)


class PatchDiscriminator(nn.Module):
    """3D PatchGAN: `num_layers` layers of stride 2, one of stride 1, and one that outputs a channel of logits.

    As in the release, the logits also pass through batch normalisation and leaky ReLU, so that their mean over a batch
    carries no information.
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        if config.num_layers < 1:
            raise ValueError(f"discriminator.num_layers must be at least 1, got {config.num_layers}")
        self.in_channels = config.in_channels
        widths = [config.base_channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        layers = [PatchDiscriminatorLayer(config.in_channels, widths[0], stride=2, normalized=False)]
        layers += [PatchDiscriminatorLayer(widths[i - 1], widths[i], stride=2) for i in range(1, config.num_layers)]
        layers += [PatchDiscriminatorLayer(widths[-2], widths[-1], stride=1)]
        layers += [PatchDiscriminatorLayer(widths[-1], 1, stride=1)]
        self.layers = nn.ModuleList(layers)

    def forward(self, video: Tensor) -> list[Tensor]:
        """Video (B, in_channels, T, H, W), about [-0.5, 0.5] -> feature maps of the num_layers + 2 layers.

        The last map holds the logits. Computed in float32, or in float64 if the video has that type.
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
