"""The language model that reads visual tokens, to answer questions, and writes them, to generate videos.

Letters: B rows, N positions, L visual tokens, C channels, D width, U rows with questions, A tokens of an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sweettok.hub import Pretrained
from sweettok.vtok import sampling
from sweettok.vtok.backbone import Backbone, Projector, build_model, load_model, scratch_model
from sweettok.vtok.heads import build_head
from sweettok.vtok.language_card import CARD
from sweettok.vtok.language_config import LanguageConfig
from sweettok.vtok.output import MOTION, VisualTokens
from sweettok.vtok.parts import Parts
from sweettok.vtok.sequences import CAPTION, PADDING, START, VISUAL, Sequences, grid_positions, text_positions
from sweettok.vtok.statistics import TokenStatistics
from sweettok.vtok.text import dump_tokenizer, load_tokenizer, require_transformers, train_tokenizer

# Loss of the video decoder: states (G, L, D) of the rows with captions, and which tokens (G, L) there are -> a scalar.
DecoderLoss = Callable[[Tensor, Tensor], Tensor]


class LanguageLosses(NamedTuple):
    """Losses of a batch: `total` is their weighted sum. Means over rows of the means over a row's tokens."""

    total: Tensor
    answer: Tensor  # L_und, cross-entropy of the answers' tokens in nats
    visual: Tensor  # L_visLM
    decoder: Tensor  # L_dec; 0 without a decoder
    correct: Tensor  # share of the answers' tokens that are the likeliest
    rows: RowLosses


class RowLosses(NamedTuple):
    """The same for each row: U with questions, G with captions."""

    answer: Tensor  # (U,)
    right: Tensor  # (U,) 1 where the whole answer is what greedy decoding gives, else 0
    visual: Tensor  # (G,)
    constant: Tensor  # (G,) squared error of the mean token, with which `mse` compares


class VideoLanguageModel(Pretrained):
    """A causal language model with a projector for visual tokens as input, and a head that predicts the next one.

    `from_base` and `from_scratch` build new ones; `answer` and `generate` use them.

    Args:
        model, tokenizer: of transformers.

    Attributes:
        source: makes tokens of a video for `answer`; that of the tokenizer in `parts`, or set by the caller.
        parts: see `attach`.
    """

    config_class = LanguageConfig
    card_info = CARD

    def __init__(self, config: LanguageConfig, model: Any, tokenizer: Any):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.source: Callable[..., VisualTokens] | None = None
        self.backbone = Backbone(model)
        if config.positions == "grid" and not self.backbone.reads_grids:
            name = type(model).__name__
            raise ValueError(f"{name} has no positions in time, height and width: set language.positions=text")
        if -config.state_layer > self.backbone.num_layers + 1:
            deepest = f"{-self.backbone.num_layers - 1}, the embeddings of this model"
            raise ValueError(f"language.state_layer must be from {deepest}, to -1; got {config.state_layer}")
        width, table = self.backbone.width, self.backbone.embeddings.weight
        self.sequences = Sequences(tokenizer, config.template, self.backbone.max_length)
        self.projector = Projector(config.visual_dim, table, find_projector(model))
        self.kind_embedding = nn.Parameter(torch.zeros(2, width))
        self.start = nn.Parameter(torch.randn(width) * table.detach().float().std())  # before the first visual token
        self.motion_mlp = zero_mlp(config.visual_dim) if config.motion_mlp else None
        self.statistics = TokenStatistics(config.visual_dim)
        self.head = build_head(width, config.visual_dim, config.head)
        self.backbone.requires_grad_(not config.freeze)
        if config.lora.rank:
            self.backbone.add_lora(config.lora)
        if config.gradient_checkpointing:
            self.backbone.recompute()
        self.attach(Parts())
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_put_back)

    def attach(self, parts: Parts) -> None:
        """Set the parts that are saved with this model: tokenizer, video decoder, and the adapter in front of it."""
        self.parts = parts
        source = parts.source()
        self.source = None if source is None else source.encode
        self._unsaved = self._find_unsaved()

    @property
    def width(self) -> int:
        """D, width of the states."""
        return self.backbone.width

    # -------------------------------------------------------------------------------------------------- training

    def forward(
        self,
        batch: dict[str, Tensor],
        draws: Tensor | None = None,
        dropped: Tensor | None = None,
        decoder: DecoderLoss | None = None,
    ) -> LanguageLosses:
        """Losses of a batch of `sequences.collate`. Visual targets are detached; inputs are not.

        Args:
            draws: (G, L, head.num_draws) normally distributed, for the rows with captions; None: torch's generator.
            dropped: (G,) bool, captions to leave out, for guidance; None: none.
            decoder: loss of the video decoder.
        """
        values, kinds, roles = batch["values"], batch["kinds"], batch["roles"]
        num_questions, length = len(batch["answers"]), values.shape[1]
        rows = slice(num_questions, None)
        exists = torch.arange(length, device=roles.device) < (roles == VISUAL).sum(1, keepdim=True)
        target = values[rows].detach()
        if self.training:
            self.statistics.update(target, kinds[rows], exists[rows])
        target = self.statistics.standardise(target, kinds[rows])
        mask = roles != PADDING
        if dropped is not None:
            none = dropped.new_zeros(num_questions)
            mask = mask & ~(torch.cat((none, dropped))[:, None] & (roles == CAPTION))
        inputs = self.embed(batch["ids"], roles, self._read(values, kinds, target))
        last, chosen = self.backbone(inputs, mask, self.positions(mask, roles, kinds), layer=self.config.state_layer)
        answer, correct, right = self._answer_loss(last[:num_questions], batch["ids"], batch["answers"])
        last, chosen = (predicting_states(states[rows], roles[rows], length) for states in (last, chosen))
        if draws is None:
            draws = torch.randn(*target.shape[:2], self.head.num_draws, device=target.device)
        with torch.autocast(target.device.type, enabled=False):
            visual = row_values(self.head.loss(last.float(), target, draws), exists[rows])
        each = RowLosses(answer, right, visual, row_values(target.square().mean(-1), exists[rows]))
        answer, visual, correct = (values.sum() / max(len(values), 1) for values in (answer, visual, correct))
        dec = visual.new_zeros(()) if decoder is None else decoder(chosen, exists[rows])
        total = answer + self.config.visual_weight * visual + self.config.decoder_weight * dec
        return LanguageLosses(total, answer, visual, dec, correct, each)

    def _read(self, values: Tensor, kinds: Tensor, target: Tensor) -> Tensor:
        """Embeddings (B, L, D) of all rows; in rows with captions, of what would be read in generation."""
        num_questions = len(values) - len(target)
        written = values[num_questions:]
        if self.config.head.kind == "fsq":
            written = self.statistics.restore(self.head.read(target), kinds[num_questions:])
        if self.config.detach_generation:
            questions = self.project(values[:num_questions], kinds[:num_questions])
            return torch.cat((questions, self.project(written, kinds[num_questions:]).detach()))
        return self.project(torch.cat((values[:num_questions], written)), kinds)

    def _answer_loss(self, states: Tensor, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (U, N, D), ids (B, N), positions of the answers' tokens (U, A) -> of each row (U,) the loss, the share
        of tokens that are the likeliest, and whether all are."""
        places, exists = answers.clamp_min(0), answers >= 0
        before = (places - 1).clamp_min(0)[..., None].expand(-1, -1, states.shape[-1])
        logits = self.backbone.logits(states.gather(1, before))
        target = ids[: len(answers)].gather(1, places)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        correct = logits.argmax(-1) == target
        right = (correct | ~exists).all(1).float()
        return row_values(loss, exists), row_values(correct.float(), exists), right

    # ------------------------------------------------------------------------------------------------- embeddings

    def project(self, values: Tensor, kinds: Tensor) -> Tensor:
        """Visual tokens (B, L, C) with kinds (B, L) -> embeddings (B, L, D). ValueError for another width."""
        if values.shape[-1] != self.config.visual_dim:
            found = f"got {values.shape[-1]}, as of another tokenizer"
            raise ValueError(f"this model's visual tokens have {self.config.visual_dim} channels; {found}")
        if self.motion_mlp is not None:
            moved = values + self.motion_mlp(values)
            values = torch.where((kinds == MOTION)[..., None], moved, values)
        if self.config.standardise_inputs:
            values = self.statistics.standardise(values, kinds)
        return self.projector(values) + self.kind_embedding[kinds]

    def embed(self, ids: Tensor, roles: Tensor, visual: Tensor) -> Tensor:
        """ids and roles (B, N) and embeddings (B, L, D) of the visual tokens -> embeddings (B, N, D)."""
        inputs = self.backbone.embeddings(ids).to(visual.dtype)
        if visual.shape[1]:
            place = ((roles == VISUAL).cumsum(1) - 1).clamp_min(0)[..., None].expand_as(inputs)
            inputs = torch.where((roles == VISUAL)[..., None], visual.gather(1, place), inputs)
        return torch.where((roles == START)[..., None], self.start.to(visual.dtype), inputs)

    def positions(self, mask: Tensor, roles: Tensor, kinds: Tensor) -> Tensor:
        """Positions (B, N) or (3, B, N) from a mask and roles (B, N), and kinds (B, L) of visual tokens."""
        if self.config.positions == "grid":
            return grid_positions(mask, roles, kinds, self.config.key_tokens)
        return text_positions(mask)

    def fit_statistics(self, batches: Iterable[VisualTokens], shared: bool = False) -> None:
        """Set the statistics of the tokens from training data, so that the first step has them already.

        Args:
            shared: all processes give the same tokens.
        """
        for tokens in batches:
            kinds = tokens.kinds.expand(tokens.values.shape[:2])
            self.statistics.update(tokens.values, kinds, torch.ones_like(kinds, dtype=torch.bool), shared)

    # ----------------------------------------------------------------------------------------------------- use

    answer = sampling.answer
    option_scores = sampling.option_scores
    generate = sampling.generate
    generate_video = sampling.generate_video

    def states(self, prompt: str | Sequence[str], tokens: VisualTokens) -> Tensor:
        """States (B, L, D) that predict the given tokens, as the video decoder is given them."""
        return sampling.generate(self, prompt, like=tokens, given=tokens).states

    # ------------------------------------------------------------------------------------------- new and saved ones

    @classmethod
    def from_scratch(cls, config: LanguageConfig, texts: Iterable[str]) -> VideoLanguageModel:
        """A small Llama with random weights, and a tokenizer trained on `texts`; nothing is downloaded."""
        tokenizer = train_tokenizer(texts, config.scratch.vocab_size)
        return cls(config, scratch_model(config.scratch, tokenizer), tokenizer)

    @classmethod
    def from_base(cls, config: LanguageConfig) -> VideoLanguageModel:
        """A model around the language model `config.base`; see `language_config.TEMPLATES` for its template."""
        if config.base is None:
            raise ValueError("language.base must name a language model: a folder, or a repository of the Hub")
        return cls(config, *load_model(config.base, getattr(torch, config.dtype)))

    def assets(self) -> dict[str, Any]:
        saved = {"architecture": self.backbone.architecture, "tokenizer": dump_tokenizer(self.tokenizer)}
        return saved | {"base": self._fingerprint(), **self.parts.to_dict()}

    @classmethod
    def build(cls, config: LanguageConfig, assets: dict[str, Any], tensors: dict[str, Tensor]) -> VideoLanguageModel:
        require_transformers()
        if config.base is not None and (config.freeze or config.lora.rank):
            found = cls.from_base(config)
        else:
            model = build_model(assets["architecture"], getattr(torch, config.dtype))
            found = cls(config, model, load_tokenizer(assets["tokenizer"]))
        parts = {name.removeprefix("parts."): value for name, value in tensors.items() if name.startswith("parts.")}
        found.attach(Parts.from_dict(assets, parts))
        if found._fingerprint() != assets["base"]:
            named = " and ".join(filter(None, (config.base, "the image encoder" if found.parts.left_out() else "")))
            raise ValueError(f"the weights of {named} are others than those that this model was trained with")
        return found

    def _fingerprint(self) -> str:
        """SHA-256 of the names and first values of the weights that are not saved, because they are published."""
        digest, own = hashlib.sha256(), dict(self.named_parameters(remove_duplicate=False))
        shared = {"backbone.head.weight"} if self.backbone.tied else set()
        for name in sorted(self._unsaved - shared):
            digest.update(f"{name} {own[name].detach().flatten()[:16].tolist()}".encode())
        return digest.hexdigest()

    def _find_unsaved(self) -> set[str]:
        """Names of tensors that are not saved: of an output layer that shares its weights, and those of the base."""
        names = {"head.weight"} if self.backbone.tied else set()
        if self.config.base is not None:
            parameters = self.backbone.named_parameters(remove_duplicate=False)
            names |= {name for name, param in parameters if not param.requires_grad}
        return {f"backbone.{name}" for name in names} | {f"parts.{name}" for name in self.parts.left_out()}


def _leave_out(model: VideoLanguageModel, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for name in model._unsaved:
        state.pop(prefix + name, None)


def _put_back(model: VideoLanguageModel, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    own = dict(model.named_parameters(remove_duplicate=False))
    for name in model._unsaved:
        if name == "backbone.head.weight" and model.backbone.tied:
            state[prefix + name] = state.get(f"{prefix}backbone.body.embed_tokens.weight", own[name])
        else:
            state[prefix + name] = own[name]


def find_projector(model: Any) -> nn.Module | None:
    """The `multi_modal_projector` of a model of images and text, or None."""
    return next((part for name, part in model.named_modules() if name.endswith("multi_modal_projector")), None)


def zero_mlp(dim: int) -> nn.Sequential:
    """An MLP (..., dim) -> (..., dim) whose output is zero at the start."""
    mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
    nn.init.zeros_(mlp[2].weight)
    nn.init.zeros_(mlp[2].bias)
    return mlp


def predicting_states(states: Tensor, roles: Tensor, length: int) -> Tensor:
    """States (B, N, D) of rows with captions -> (B, L, D): of the start and all visual tokens but the last."""
    first = (roles == START).long().argmax(1, keepdim=True)
    places = (first + torch.arange(length, device=states.device)).clamp_max(states.shape[1] - 1)
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def row_values(losses: Tensor, exists: Tensor) -> Tensor:
    """Losses (B, n) -> (B,), the mean of those of each row that exist."""
    return (losses * exists).sum(1) / exists.sum(1).clamp_min(1)
