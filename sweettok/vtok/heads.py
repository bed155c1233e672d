"""Heads that predict the next visual token from a state of the language model, with their losses.

All work on standardised tokens. Letters: B clips, L tokens, C channels, D width of states, R random numbers per token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sweettok.vtok.language_config import HeadConfig


def guided(outputs: Tensor, scale: float) -> Tensor:
    """(G B, ...): with captions and, if G is 2, without -> (B, ...) guided."""
    if scale == 1:
        return outputs
    conditional, unconditional = outputs.chunk(2)
    return unconditional + scale * (conditional - unconditional)


class RegressionHead(nn.Module):
    """A linear layer. It always predicts the mean of all continuations; the seed changes nothing.

    With `cosine`, only the direction is compared, and predictions get the mean length of standardised tokens.
    """

    num_draws = 0

    def __init__(self, width: int, dim: int, config: HeadConfig):
        super().__init__()
        self.cosine, self.out = config.kind == "cosine", nn.Linear(width, dim)

    def loss(self, states: Tensor, target: Tensor, draws: Tensor) -> Tensor:
        """states (B, L, D), target (B, L, C), draws (B, L, R) of a normal distribution -> losses (B, L)."""
        found = self.out(states)
        if self.cosine:
            return 1 - F.cosine_similarity(found, target, dim=-1)
        return (found - target).square().mean(-1)

    def predict(self, states: Tensor, scale: float, draws: Tensor) -> Tensor:
        """states (G B, D) as in `guided`, draws (B, R) of a normal distribution -> tokens (B, C)."""
        found = guided(self.out(states), scale)
        return F.normalize(found, dim=-1) * math.sqrt(found.shape[-1]) if self.cosine else found

    def read(self, target: Tensor) -> Tensor:
        """Tokens (..., C) as the language model will read them when it generates."""
        return target


class FlowHead(nn.Module):
    """Flow matching of each token (as in MAR, arXiv 2406.11838): an MLP with adaptive normalisation by the state.

    x = (1 - s) token + s noise for noise levels s in (0, 1); the network predicts noise - token.
    """

    def __init__(self, width: int, dim: int, config: HeadConfig):
        super().__init__()
        hidden = config.flow_width
        self.dim, self.repeats, self.steps = dim, config.flow_repeats, config.flow_steps
        self.num_draws = (dim + 1) * self.repeats
        self.noise = nn.Linear(dim, hidden)
        self.state = nn.Linear(width, hidden)
        self.level = nn.Sequential(nn.Linear(64, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.modulations = nn.ModuleList(nn.Linear(hidden, 3 * hidden) for _ in range(config.flow_layers))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(config.flow_layers)
        )
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.out = nn.Linear(hidden, dim)
        for layer in (*self.modulations, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, noisy: Tensor, level: Tensor, states: Tensor) -> Tensor:
        """noisy (..., C), level (...), states (..., D) -> velocity (..., C)."""
        waves = torch.exp(torch.arange(32, device=level.device) * (-math.log(1e4) / 32)) * 1000
        angles = level[..., None] * waves
        condition = F.silu(self.state(states) + self.level(torch.cat((angles.sin(), angles.cos()), -1)))
        x = self.noise(noisy)
        for modulation, block in zip(self.modulations, self.blocks, strict=True):
            scale, shift, gate = modulation(condition).chunk(3, -1)
            x = x + gate * block(self.norm(x) * (1 + scale) + shift)
        return self.out(self.norm(x))

    def loss(self, states: Tensor, target: Tensor, draws: Tensor) -> Tensor:
        draws = draws.unflatten(-1, (self.repeats, self.dim + 1))
        noise, level = draws[..., :-1], draws[..., -1].sigmoid()
        target, states = target[..., None, :], states[..., None, :].expand(*draws.shape[:-1], -1)
        noisy = target + level[..., None] * (noise - target)
        return (self(noisy, level, states) - (noise - target)).square().mean((-2, -1))

    def predict(self, states: Tensor, scale: float, draws: Tensor) -> Tensor:
        x, repeats = draws[:, : self.dim], len(states) // len(draws)
        for step in range(self.steps):
            level = x.new_full((len(states),), 1 - step / self.steps)
            x = x - guided(self(x.repeat(repeats, 1), level, states), scale) / self.steps
        return x

    def read(self, target: Tensor) -> Tensor:
        return target


class FSQHead(nn.Module):
    """Codes of finite scalar quantisation (arXiv 2309.15505), each predicted by a softmax over all of its values.

    The quantiser, two linear layers around the rounding, is trained along by the error of its reconstruction. Codes of
    a token are drawn independently of each other.
    """

    levels: Tensor

    def __init__(self, width: int, dim: int, config: HeadConfig):
        super().__init__()
        self.num_draws = self.codes = config.fsq_codes
        self.register_buffer("levels", torch.tensor(config.fsq_levels), persistent=False)
        numbers = self.codes * len(config.fsq_levels)
        self.down, self.up = nn.Linear(dim, numbers), nn.Linear(numbers, dim)
        self.size = math.prod(config.fsq_levels)
        self.out = nn.Linear(width, self.codes * self.size)

    def quantise(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (..., C) -> reconstructed tokens (..., C), with straight-through gradients, and ids (..., codes)."""
        top = self.levels - 1
        scaled = self.down(target).unflatten(-1, (self.codes, -1)).sigmoid() * top
        digits = scaled.round()
        ids = (digits.long() * self._places).sum(-1)
        return self._decode(scaled + (digits - scaled).detach()), ids

    @property
    def _places(self) -> Tensor:
        return F.pad(self.levels[:-1].cumprod(0), (1, 0), value=1)

    def _decode(self, digits: Tensor) -> Tensor:
        return self.up((2 * digits / (self.levels - 1) - 1).flatten(-2))

    def loss(self, states: Tensor, target: Tensor, draws: Tensor) -> Tensor:
        rebuilt, ids = self.quantise(target)
        logits = self.out(states).unflatten(-1, (self.codes, self.size))
        entropy = F.cross_entropy(logits.movedim(-1, 1), ids, reduction="none").mean(-1)
        return entropy + (rebuilt - target).square().mean(-1)

    def predict(self, states: Tensor, scale: float, draws: Tensor) -> Tensor:
        logits = guided(self.out(states).unflatten(-1, (self.codes, self.size)), scale)
        reached = logits.double().softmax(-1).cumsum(-1)
        chances = torch.special.ndtr(draws.double())[..., None] * reached[..., -1:]
        ids = torch.searchsorted(reached, chances).clamp_max(self.size - 1)
        return self._decode((ids // self._places % self.levels).float())

    def read(self, target: Tensor) -> Tensor:
        return self.quantise(target)[0].detach()


def build_head(width: int, dim: int, config: HeadConfig) -> RegressionHead | FlowHead | FSQHead:
    """The head of `config.kind`, from states of `width` to tokens of `dim` channels."""
    return {"flow": FlowHead, "fsq": FSQHead}.get(config.kind, RegressionHead)(width, dim, config)
