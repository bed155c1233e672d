"""VTok's image encoder, trained from scratch on frames and their captions. Public CLIP models make this needless."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sweettok.config import positive, whole
from sweettok.data.annotations import AnnotatedClips
from sweettok.data.config import AnnotatedDataConfig
from sweettok.data.frames import FACTS, CaptionedFrames, frame_caption, frame_facts
from sweettok.stages.inputs import Inputs
from sweettok.stages.video import trained_module
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import StepContext, Task
from sweettok.vtok.config import VTokConfig
from sweettok.vtok.contrastive import CaptionIds, ContrastiveModel, TextConfig, contrastive_loss
from sweettok.vtok.model import VTok
from sweettok.vtok.text import train_tokenizer

TIMES = (0.0, 0.5, 1.0)  # of the frames whose captions the tokenizer is trained on


@dataclass(frozen=True)
class ContrastiveLossConfig:
    """Losses of the image encoder."""

    # Clips whose frames and captions are compared with each other; must divide a micro-batch. null: a micro-batch.
    group: int | None = None
    readout_weight: float = 1.0  # of the linear layer that shows what the features hold; the encoder is not affected

    def __post_init__(self):
        whole(self, "loss", 1, "group")
        positive(self, "loss", "readout_weight")


@dataclass(frozen=True)
class VTokEncoderRun:
    """Train VTok's image encoder on frames and captions of scenes; the result is a VTok.

    `vtok.architecture` or `vtok.encoder` gives its sizes, `vtok.pretrained` the weights to start from.
    """

    stage: str = "vtok_encoder"
    vtok: VTokConfig = field(default_factory=lambda: VTokConfig(pretrained=None))
    text: TextConfig = field(default_factory=TextConfig)
    num_frames: int = 25  # frames of a clip that are read, from its first one on
    frames_per_clip: int = 4  # frames of a clip in a step, drawn at random
    data: AnnotatedDataConfig = field(default_factory=AnnotatedDataConfig)
    loss: ContrastiveLossConfig = field(default_factory=ContrastiveLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        if not 1 <= self.frames_per_clip <= self.num_frames:
            raise ValueError(f"frames_per_clip must be from 1 to num_frames; got {self.frames_per_clip}")


class VTokEncoderTask(Task):
    """Trains the encoder by a contrastive loss, with a text encoder that is thrown away."""

    name = "vtok_encoder"
    run_class = VTokEncoderRun

    def __init__(self, run: VTokEncoderRun, inputs: Inputs | None = None):
        self.run, inputs = run, inputs or Inputs()
        self.vtok = VTok(run.vtok)
        self.vtok.projection.requires_grad_(False)
        clips = inputs.annotated(run.data.train, run.data)
        texts, rates = survey(clips) if inputs.readable else (("unknown",), torch.zeros(len(FACTS)))
        self.ids = CaptionIds(train_tokenizer(texts, run.text.vocab_size), run.text.context_length)
        self.model = ContrastiveModel(self.vtok, run.text, self.ids.tokenizer, rates)
        self.model.clip.set_grad_checkpointing(run.train.gradient_checkpointing)
        self.trained = {"generator": trained_module("generator", self.model, run.optimizer, run.train)}
        self.train_dataset = self._frames(inputs, clips, run.train.seed)
        if run.data.validation:
            self.validation_dataset = self._frames(inputs, inputs.annotated(run.data.validation, run.data))

    def _frames(self, inputs: Inputs, clips: Any, seed: int | None = None) -> Any:
        if not inputs.readable:
            return range(len(clips))
        run, size = self.run, self.vtok.encoder.size
        pixels = inputs.pixels(clips.clips, run.data, run.num_frames, size, run.vtok.preprocessing, seed is not None)
        return CaptionedFrames(clips, pixels, run.frames_per_clip, self.ids, seed)

    @classmethod
    def saved_model(cls, run: VTokEncoderRun, inputs: Inputs) -> VTok:
        return VTok(run.vtok, load=False)

    def example_batch(self, size: int) -> dict[str, Tensor]:
        shape, (height, width) = (size, self.run.frames_per_clip), self.vtok.encoder.size
        return {
            "image": torch.zeros(*shape, 3, height, width, dtype=torch.uint8),
            "text": torch.zeros(*shape, self.run.text.context_length, dtype=torch.long),
            "facts": torch.zeros(*shape, len(FACTS)),
        }

    @property
    def tokens_per_clip(self) -> int:
        rows, columns = self.vtok.encoder.grid
        return self.run.frames_per_clip * rows * columns

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        clips, weight = len(batch["image"]), self.run.loss.readout_weight
        group = self.run.loss.group or clips
        if clips % group:
            raise ValueError(f"loss.group {group} does not divide the {clips} clips of a micro-batch")
        pairs = self.trained["generator"].module(batch["image"], batch["text"])
        contrast = contrastive_loss(pairs, batch["text"], group)
        known, facts = ~batch["facts"].isnan(), batch["facts"].nan_to_num()
        readout = F.binary_cross_entropy_with_logits(pairs.facts, facts, known.float(), reduction="sum")
        readout = readout / known.sum().clamp_min(1)
        report = {"contrastive_loss": contrast.detach(), "readout_loss": readout.detach()}
        yield "generator", contrast + weight * readout, report | {"scale": pairs.scale.detach()}

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, Tensor]:
        """`retrieval`: share of frames nearer to their caption than to the 31 others of their item. `readout_accuracy`:
        of the facts by the linear layer; `readout_majority`: by what is more frequent in training."""
        pairs, others = self.model(batch["image"], batch["text"]), batch["others"]
        own = (pairs.image * pairs.text).sum(-1)
        wrong = pairs.image @ self.model.embed(others).transpose(1, 2)
        same = (others[:, None] == batch["text"][:, :, None]).all(-1)
        found = {"retrieval": (own > wrong.masked_fill(same, -2).amax(-1)).float().mean(1)}
        facts = batch["facts"]
        if not facts.isnan().any():
            found["readout_accuracy"] = ((pairs.facts > 0) == (facts > 0.5)).float().mean((1, 2))
            found["readout_majority"] = ((self.model.rates > 0.5) == (facts > 0.5)).float().mean((1, 2))
        return found

    def export(self, folder: Path, training: Mapping[str, Any]) -> None:
        vtok = VTok(self.run.vtok, load=False, sizes=self.vtok.sizes)
        vtok.load_state_dict({**self.vtok.state_dict(), **_visual(self.model.clip.visual.state_dict())})
        vtok.save_pretrained(folder, training=training)


def _visual(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"encoder.visual.{name}": value for name, value in state.items()}


def survey(clips: AnnotatedClips) -> tuple[list[str], Tensor]:
    """Captions of frames at TIMES, or of clips without records, and the share of them in which each fact is true."""
    if clips.scenes is None:
        return list(clips.captions), torch.full((len(FACTS),), 0.5)
    pairs = [(scene, time) for scene in clips.scenes for time in TIMES]
    return [frame_caption(*pair) for pair in pairs], torch.tensor([frame_facts(*pair) for pair in pairs]).mean(0)
