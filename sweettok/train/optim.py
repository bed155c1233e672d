"""Optimizers over decayed and undecayed parameters, and their learning-rate schedule counted in optimizer steps."""

import math
from collections.abc import Callable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from sweettok.train.config import OptimizerConfig
from sweettok.train.muon import Muon

# Layers whose `weight` is a matrix (or kernel) applied to activations.
_MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RELEASE_NO_DECAY = ("ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma")


def param_groups(
    module: nn.Module,
    weight_decay: float,
    rule: str = "by_type",
    released_name: Callable[[str], str | None] = lambda name: name,
) -> list[dict]:
    """Two groups of the trainable parameters: with and without weight decay. Either may be empty.

    Args:
        rule: "by_type": only weights of linear and convolution layers decay. "release": all parameters decay but those
            with fewer than 2 dimensions and those with one of a few words in their released name. That includes the
            latent query tables and null keys, and excludes relative position biases, probably by accident.
        released_name: maps parameter names to released ones, or to None for parameters that the release does not have.
    """
    trainable = {name: param for name, param in module.named_parameters() if param.requires_grad}
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no trainable parameters to optimize")
    if rule == "by_type":
        matrices = {id(layer.weight) for layer in module.modules() if isinstance(layer, _MATRIX_LAYERS)}
        decayed = {name for name, param in trainable.items() if id(param) in matrices}
    else:
        decayed = {
            name
            for name, param in trainable.items()
            if param.ndim >= 2 and not any(word in (released_name(name) or name) for word in _RELEASE_NO_DECAY)
        }
    return [
        {"params": [param for name, param in trainable.items() if name in decayed], "weight_decay": weight_decay},
        {"params": [param for name, param in trainable.items() if name not in decayed], "weight_decay": 0.0},
    ]


def make_optimizer(
    module: nn.Module, config: OptimizerConfig, released_name: Callable[[str], str | None] = lambda name: name
) -> AdamW:
    """The optimizer of the trainable parameters of `module`."""
    groups = param_groups(module, config.weight_decay, config.decay_rule, released_name)
    options = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": True}
    if config.kind == "adamw":
        return AdamW(groups, **options)
    hidden = matrices(module, hidden=config.kind == "muon")
    split = []
    for group in groups:
        for orthogonal in (False, True):
            params = [param for param in group["params"] if (id(param) in hidden) == orthogonal]
            split.append({**group, "params": params, "orthogonal": orthogonal})
    return Muon(split, **options)


def matrices(module: nn.Module, hidden: bool) -> set[int]:
    """The `id` of the weights of linear layers: all, or those that are `hidden` in the parts of an nn.ModuleList."""
    parts = [part for group in module.modules() if isinstance(group, nn.ModuleList) for part in group]
    layers = (layer for part in (parts if hidden else [module]) for layer in part.modules())
    return {id(layer.weight) for layer in layers if isinstance(layer, nn.Linear)}


def lr_factor(step: int, warmup: int, total: int, base: float, end: float) -> float:
    """Learning rate of the update with zero-based index `step`, as a fraction of `base`.

    Linear from 0 over `warmup` steps, then a cosine to `end` at step `total`, and constant after it (in the release it
    rises again).
    """
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return (end + (base - end) * 0.5 * (1 + math.cos(math.pi * progress))) / base


def make_scheduler(optimizer: AdamW, config: OptimizerConfig, max_steps: int, start_step: int = 0) -> LambdaLR:
    """The schedule of an optimizer that is used in the steps from `start_step` to `max_steps` - 1 of the run.

    A discriminator that starts later has its own warm-up and reaches `end_lr` at the end of the run. Step it once per
    update, and do not let accelerate prepare it, which would step it once for each process.
    """
    total = max_steps - start_step
    return LambdaLR(optimizer, lambda step: lr_factor(step, config.warmup_steps, total, config.lr, config.end_lr))
