"""VTok's embedded video decoder, trained on the true tokens of clips; the language model learns to feed it later."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from sweettok import pixels
from sweettok.config import positive
from sweettok.data.config import AnnotatedDataConfig
from sweettok.data.writer import compare
from sweettok.seeds import sample_generator
from sweettok.stages.inputs import Inputs
from sweettok.stages.video import trained_module
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import StepContext, Task
from sweettok.vtok.datasets import TokenClips
from sweettok.vtok.decoder import PixelFlow, PixelFlowConfig
from sweettok.vtok.flow import check_size

DRAWS = 4  # noise levels of each clip in validation
BATCH = 256  # clips whose tokens are added to the statistics together


@dataclass(frozen=True)
class VTokDecoderRun:
    """Train the video decoder `PixelFlow` on clips and their tokens, standardised as the language model's targets are.

    `decoder.state_dim` is always the width of the tokens.
    """

    stage: str = "vtok_decoder"
    tokenizer: str = MISSING  # folder of a VTok
    decoder: PixelFlowConfig = field(default_factory=PixelFlowConfig)
    num_frames: int = 25  # frames of a clip, from its first one on; one more than a multiple of the decoder's tubes
    size: int = 32  # height and width of clips; a multiple of the decoder's patches
    data: AnnotatedDataConfig = field(default_factory=AnnotatedDataConfig)
    sample_steps: int = 16  # Euler steps of samples
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        positive(self, "run", "sample_steps")
        check_size(self.num_frames, self.size, self.decoder.temporal_patch_size, self.decoder.patch_size)


class FlowLoss(nn.Module):
    """The loss of a decoder as a forward, which the loop can wrap."""

    def __init__(self, decoder: PixelFlow):
        super().__init__()
        self.decoder = decoder

    def forward(self, video: Tensor, states: Tensor, generators: list[torch.Generator]) -> Tensor:
        return self.decoder.losses(video, states, generator=generators)


class VTokDecoderTask(Task):
    """Trains the decoder by flow matching, given the true tokens."""

    name = "vtok_decoder"
    run_class = VTokDecoderRun

    def __init__(self, run: VTokDecoderRun, inputs: Inputs | None = None):
        self.run, inputs = run, inputs or Inputs()
        self.tokenizer = inputs.vtok(run.tokenizer)
        how, grid = self.tokenizer.config, run.decoder.state_grid
        if grid is not None and (tuple(how.grid), how.key_frame, how.segment_threshold) != (grid, "first", None):
            raise ValueError(
                f"decoder.state_grid {grid} must be the tokenizer's grid, {tuple(how.grid)}, and the first frame its "
                f"only key frame; it has key_frame {how.key_frame!r}, segment_threshold {how.segment_threshold}"
            )
        self.model = PixelFlow(replace(run.decoder, state_dim=self.tokenizer.dim))
        if not run.decoder.state_dropout:
            self.model.no_states.requires_grad_(False)
        self.train_dataset = self._clips(inputs, run.data.train, training=True)
        if run.data.validation:
            self.validation_dataset = self._clips(inputs, run.data.validation, training=False)
        if inputs.readable:
            self._fit_statistics(self.train_dataset)
        self.trained = {"generator": trained_module("generator", FlowLoss(self.model), run.optimizer, run.train)}

    def _clips(self, inputs: Inputs, source: str, training: bool) -> Any:
        run, clips = self.run, inputs.annotated(source, self.run.data)
        if not inputs.readable:
            return range(len(clips))
        how = self.tokenizer.config.preprocessing
        read = inputs.pixels(clips.clips, run.data, run.num_frames, (run.size, run.size), how, training)
        features = inputs.features(self.tokenizer, clips.clips, run.data, run.train, run.num_frames)
        return TokenClips(self.tokenizer, clips, features, read)

    def _fit_statistics(self, clips: TokenClips) -> None:
        for start in range(0, len(clips), BATCH):
            tokens = clips.tokens(range(start, min(start + BATCH, len(clips))))
            kinds = tokens.kinds.expand(tokens.values.shape[:2])
            self.model.statistics.update(tokens.values, kinds, torch.ones_like(kinds, dtype=torch.bool), shared=True)

    def example_batch(self, size: int) -> dict[str, Tensor]:
        run, tokens = self.run, self.tokens_per_clip
        return {
            "video": torch.zeros(size, 3, run.num_frames, run.size, run.size, dtype=torch.uint8),
            "values": torch.zeros(size, tokens, self.tokenizer.dim),
            "kinds": torch.zeros(size, tokens, dtype=torch.long),
        }

    @property
    def tokens_per_clip(self) -> int:
        return self.tokenizer.num_tokens(frames=self.run.num_frames)

    def states(self, batch: dict) -> Tensor:
        """States (B, L, C) of a batch's tokens."""
        return self.model.statistics.standardise(batch["values"], batch["kinds"])

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        generators = context.generators("flow")
        losses = self.trained["generator"].module(batch["video"], self.states(batch), generators)
        yield "generator", losses.mean(), {}

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, Tensor]:
        """Loss of each clip, `flow_loss`, and with equal noise `flow_loss_without_states`; levels are spread evenly."""
        video, states = batch["video"], self.states(batch)
        numbers = [zlib.crc32(key.encode()) for key in batch["key"]]
        found = {}
        for name, dropped in (("flow_loss", False), ("flow_loss_without_states", True)):
            drop, total = torch.full((len(video),), dropped), 0.0
            for draw in range(DRAWS):
                generators = [sample_generator(draw, number) for number in numbers]
                total = total + self.model.losses(video, states, generator=generators, drop=drop)
            found[name] = total / DRAWS
        return found

    @torch.no_grad()
    def sample(self, batch: dict) -> Tensor:
        """original | sample from its tokens | difference of each clip, uint8 (B, 3, T, H, 3 W)."""
        run = self.run
        fake = self.model.sample(
            self.states(batch), run.num_frames, run.size, seed=run.train.seed, steps=run.sample_steps
        )
        pairs = zip(batch["video"].cpu(), pixels.to_uint8(fake).cpu(), strict=True)
        return torch.stack([compare(original, sampled) for original, sampled in pairs])

    def export(self, folder: Path, training: Mapping[str, Any]) -> None:
        self.model.save_pretrained(folder, training=training)

    @classmethod
    def saved_model(cls, run: VTokDecoderRun, inputs: Inputs) -> PixelFlow:
        return PixelFlow(replace(run.decoder, state_dim=inputs.vtok(run.tokenizer).dim))
