"""AdamW over decayed and undecayed parameters, and its learning-rate schedule counted in optimizer steps."""

import math
from collections.abc import Callable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from sweettok.train.config import OptimizerConfig

# Layers whose `weight` is a matrix (or kernel) applied to activations.
_MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RELEASE_NO_DECAY = ("ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma")


def param_groups(
    module: nn.Module,
    weight_decay: float,
    rule: str = "by_type",
    released_name: Callable[[str], str | None] = lambda name: name,
) -> list[dict]:
    """Two groups of the trainable parameters: decayed, then undecayed (either may be empty).

    rule "by_type": only weights of linear and convolution layers decay; norms, biases, embeddings, learned tokens,
    position tables and scales do not. rule "release": a parameter decays unless it has fewer than 2 dimensions or its
    released name contains one of a few words. By accident that decays the latent query tables and null keys, and spares
    every weight of a relative position bias. `released_name` maps our parameter names to the names that rule reads
    (None: the release has no such parameter, so ours is read).
    """
    trainable = {name: param for name, param in module.named_parameters() if param.requires_grad}
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no trainable parameters to optimize")
    if rule == "by_type":
        matrices = {id(layer.weight) for layer in module.modules() if isinstance(layer, _MATRIX_LAYERS)}
        decayed = {name for name, param in trainable.items() if id(param) in matrices}
    elif rule == "release":
        decayed = {
            name
            for name, param in trainable.items()
            if param.ndim >= 2 and not any(word in (released_name(name) or name) for word in _RELEASE_NO_DECAY)
        }
    else:
        raise ValueError(f"decay rule must be 'by_type' or 'release', got {rule!r}")
    return [
        {"params": [param for name, param in trainable.items() if name in decayed], "weight_decay": weight_decay},
        {"params": [param for name, param in trainable.items() if name not in decayed], "weight_decay": 0.0},
    ]


def make_optimizer(
    module: nn.Module, config: OptimizerConfig, released_name: Callable[[str], str | None] = lambda name: name
) -> AdamW:
    """AdamW over the trainable parameters of `module`."""
    groups = param_groups(module, config.weight_decay, config.decay_rule, released_name)
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def lr_factor(step: int, warmup: int, total: int, base: float, end: float) -> float:
    """Learning rate of the update with zero-based index `step`, as a fraction of `base`.

    Linear from 0 over `warmup` steps, then a cosine from `base` to `end` at step `total`, where it stays (the release's
    rises again).
    """
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return (end + (base - end) * 0.5 * (1 + math.cos(math.pi * progress))) / base


def make_scheduler(optimizer: AdamW, config: OptimizerConfig, max_steps: int, start_step: int = 0) -> LambdaLR:
    """The schedule of an optimizer whose updates are those of steps `start_step` to `max_steps` - 1 of the run.

    It counts the optimizer's own updates: step it once after each, never before the first, and do not let accelerate
    prepare it (that would tick it once for each process). A discriminator that joins at `start_step` thus starts with
    its own warm-up and reaches `end_lr` with the run, for any number of processes.
    """
    total = max_steps - start_step
    return LambdaLR(optimizer, lambda step: lr_factor(step, config.warmup_steps, total, config.lr, config.end_lr))
