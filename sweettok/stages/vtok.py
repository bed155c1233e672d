"""The joint stage of VTok: a language model that answers questions about videos, and generates their tokens."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from sweettok import pixels
from sweettok.config import positive
from sweettok.data.config import AnnotatedDataConfig
from sweettok.data.preprocess import Preprocessing
from sweettok.seeds import sample_noise
from sweettok.stages import vtok_inputs as opening
from sweettok.stages.inputs import Inputs
from sweettok.stages.video import trained_module
from sweettok.train.config import OptimizerConfig, TrainConfig
from sweettok.train.task import StepContext, Task
from sweettok.vtok.adapter import AdaptedDecoder, StateAdapter, StateAdapterConfig
from sweettok.vtok.datasets import TokenClips, TokenQuestions
from sweettok.vtok.decoder import PixelFlow
from sweettok.vtok.dialogues import Dialogues, FeatureClips, HeldOut
from sweettok.vtok.language import LanguageLosses, VideoLanguageModel
from sweettok.vtok.language_config import LanguageConfig
from sweettok.vtok.model import VTok
from sweettok.vtok.output import KEY, MOTION
from sweettok.vtok.parts import DecoderConfig, Parts
from sweettok.vtok.sampling import generate_video, text_inputs
from sweettok.vtok.sequences import Mixed
from sweettok.vtok.sources import UNITS, WordTokens

STATISTICS_CLIPS = 2048  # from which mean and variance of the tokens are computed, spread over the training clips
TEXT = "x " * 32  # of a question or a caption whose text is unknown, in plans


@dataclass(frozen=True)
class VTokRun:
    """Train a language model on questions about clips, and on captions whose visual tokens it predicts.

    `captions.jsonl` and `questions.jsonl` stand beside the lists of clips. The width, number and rate of visual tokens
    (`language.visual_dim`, `key_tokens`, `tokens_per_second`) are those of the tokenizer.
    """

    stage: str = "vtok"
    tokenizer: str = MISSING  # a VTok or a SweetTok, a folder or a repository of the Hub; it is frozen
    unit: str = UNITS[-1]  # of a SweetTok: a visual token for each of its "queries", or of its "words"
    train_projection: bool = False  # train the projection of the VTok (g) too, from all losses but not through targets
    num_frames: int = 25  # frames of a clip, from its first one on
    blind: bool = False  # leave out the visual tokens, to know what can be answered without them
    ratio: tuple[int, int] = (1, 1)  # questions and captions in each of the `global_batch_size` groups of a step
    language: LanguageConfig = field(default_factory=LanguageConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    data: AnnotatedDataConfig = field(default_factory=AnnotatedDataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", tuple(self.ratio))
        if len(self.ratio) != 2 or min(self.ratio) < 0 or not any(self.ratio):
            raise ValueError(f"ratio must be two whole numbers, questions and captions, not both 0; got {self.ratio}")
        positive(self, "run", "num_frames")
        if self.blind and self.ratio[1]:
            raise ValueError(f"blind models only answer: set ratio=[1,0]; got {list(self.ratio)}")
        whole_lm = not self.language.lora.rank and not self.language.freeze
        if self.language.dtype == "bfloat16" and whole_lm:
            raise ValueError(
                "language.dtype=bfloat16 is for frozen weights, as it rounds small updates away: set "
                "language.lora.rank or language.freeze, or keep float32 with train.mixed_precision=bf16"
            )


class JointLoss(nn.Module):
    """Losses of a language model, all of which depend on all trained parameters, as data parallelism needs it."""

    def __init__(self, model: VideoLanguageModel, projection: nn.Module | None):
        super().__init__()
        self.language, self.projection = model, projection

    def forward(
        self,
        batch: dict[str, Any],
        draws: Tensor | None = None,
        dropped: Tensor | None = None,
        decoder: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> LanguageLosses:
        """Arguments as of `VideoLanguageModel`."""
        losses = self.language({**batch, "values": self.values(batch)}, draws, dropped, decoder)
        model, idle = self.language, []
        if decoder is None and "adapter" in model.parts:
            idle.append(model.parts["adapter"])
        if not len(losses.rows.visual):
            idle.append(model.head)
        unused = [param for module in idle for param in module.parameters()]
        unused += [] if len(losses.rows.visual) else [model.start]
        if not batch["values"].shape[1]:
            parts = (model.projector, model.motion_mlp or nn.Identity(), self.projection or nn.Identity())
            unused += [model.kind_embedding, *(param for part in parts for param in part.parameters())]
        zero = sum((0 * param.sum() for param in unused if param.requires_grad), start=losses.total.new_zeros(()))
        return losses._replace(total=losses.total + zero)

    def values(self, batch: dict[str, Any]) -> Tensor:
        """Tokens (B, L, C); those of motion by the projection, if it is trained."""
        if self.projection is None or not batch["values"].shape[1]:
            return batch["values"]
        moving = batch["kinds"] == MOTION
        place = (moving.cumsum(1) - 1).clamp_min(0)[..., None].expand_as(batch["values"])
        found = self.projection(batch["residuals"]).gather(1, place)
        return torch.where(moving[..., None], found, batch["values"])


class JointTask(Task):
    """Trains a language model, its projector and heads, and the adapter in front of the frozen video decoder."""

    name = "vtok"
    run_class = VTokRun

    def __init__(self, run: VTokRun, inputs: Inputs | None = None):
        self.run, self.inputs = run, inputs or Inputs()
        source = opening.open_tokenizer(self.inputs, run.tokenizer, run.unit)
        if run.train_projection and not (isinstance(source, VTok) and list(source.projection.parameters())):
            raise ValueError("train_projection needs a tokenizer of VTok with vtok.projection mlp or patch_mlp")
        self.texts = opening.open_texts(self.inputs, run.data.train, run.data)
        clips = self._open_clips(source, self.texts, training=True)
        if clips is not None:
            about = clips.features.manifest
            self.layout = opening.Layout(about.kinds, about.patches, about.dim)
        else:
            self.layout = opening.layout_of(self.inputs, source, run.num_frames, run.decoder.fps)
        self.model = self._build(source)
        self._make_datasets(source, clips)
        self._make_trained()
        if clips is not None and not run.blind:
            self._fit_statistics(clips)

    # -------------------------------------------------------------------------------------------------- construction

    def _build(self, source: Any) -> VideoLanguageModel:
        run, keys = self.run, self.layout.kinds.count(KEY)
        facts: dict[str, Any] = {"visual_dim": self.layout.dim, "key_tokens": max(keys, 1)}
        if isinstance(source, VTok):
            every = source.config.frames_per_token
            rate = source.config.tokens_per_second if every is None else run.decoder.fps / every
            facts["tokens_per_second"] = 0.0 if source.config.key_frame == "all" else rate
        else:  # SweetTok has as many for every clip
            seconds = (run.num_frames - 1) / run.decoder.fps
            facts["tokens_per_second"] = self.layout.kinds.count(MOTION) / seconds if seconds else 0.0
        model = opening.open_language(self.inputs, replace(run.language, **facts), self.texts.texts)
        decoder = opening.open_decoder(self.inputs, run.decoder, run.train.gradient_checkpointing)
        adapter, state_dim = None, getattr(decoder, "state_dim", model.width)
        if decoder is not None and run.decoder.adapter_rms is not None:
            hidden = run.decoder.adapter_hidden or max(model.width, state_dim)
            adapter = StateAdapter(StateAdapterConfig(model.width, state_dim, hidden, run.decoder.adapter_rms))
        elif decoder is not None and (state_dim, decoder.state_layer) != (model.width, run.language.state_layer):
            raise ValueError(
                f"the decoder takes states of width {state_dim} and layer {decoder.state_layer}, this language model "
                f"gives width {model.width} and layer {run.language.state_layer}: set decoder.adapter_rms, or "
                "language.state_layer"
            )
        tokenizer = source.tokenizer if isinstance(source, WordTokens) else source
        tokenizer = tokenizer if isinstance(tokenizer, nn.Module) else None
        inside = decoder if isinstance(decoder, PixelFlow) else None
        model.attach(Parts(run.decoder, run.unit, run.num_frames, tokenizer=tokenizer, adapter=adapter, decoder=inside))
        self.published = None if decoder is inside else decoder  # named, not saved with the model
        self.decoder = decoder if adapter is None or decoder is None else AdaptedDecoder(adapter, decoder)
        if run.train.gradient_checkpointing:
            model.backbone.recompute()
        return model.train()

    def _open_clips(self, source: Any, texts: Any, training: bool) -> TokenClips | None:
        """Tokens of the clips of a list, with their pixels if there is a decoder; None without values."""
        run, inputs, shown = self.run, self.inputs, None
        if not inputs.readable:
            return None
        if run.decoder.kind != "none" and run.ratio[1]:
            size, how = (run.decoder.height, run.decoder.width), Preprocessing()
            how = source.config.preprocessing if isinstance(source, VTok) else how
            shown = inputs.pixels(texts.clips, run.data, run.num_frames, size, how, training)
        features = inputs.features(source, texts.clips, run.data, run.train, run.num_frames)
        return (FeatureClips if run.train_projection else TokenClips)(source, texts, features, shown)

    def _make_datasets(self, source: Any, clips: TokenClips | None) -> None:
        run, sequences = self.run, self.model.sequences
        if clips is None:
            asked = sum(map(len, self.texts.questions))
            counts = [-(-n // share) for n, share in zip((asked, len(self.texts)), run.ratio, strict=True) if share]
            self.train_dataset = range(max(counts))
            return
        questions = TokenQuestions(clips) if run.ratio[0] else ()
        self.train_dataset = Dialogues(Mixed(questions, clips, run.ratio), sequences, run.blind)
        if run.data.validation:
            texts = opening.open_texts(self.inputs, run.data.validation, run.data)
            held_out = self._open_clips(source, texts, training=False)
            self.validation_dataset = Dialogues(HeldOut(held_out), sequences, run.blind)

    def _make_trained(self) -> None:
        run, model = self.run, self.model
        projection = self.trained_projection
        if projection is not None:
            projection.requires_grad_(True)
        for param in model.parameters():
            if param.requires_grad and param.dtype != torch.float32:
                param.data = param.data.float()
        module = JointLoss(model, projection)
        self.trained = {"generator": trained_module("generator", module, run.optimizer, run.train)}

    def _fit_statistics(self, clips: TokenClips) -> None:
        total, count = len(clips), min(STATISTICS_CLIPS, len(clips))
        rows = [number * total // count for number in range(count)]
        self.model.fit_statistics((clips.tokens(range(row, row + 1)) for row in rows), shared=True)
        self.model.statistics.fixed = not self.run.train_projection  # which changes the tokens

    # ------------------------------------------------------------------------------------------------------ training

    def losses(self, batch: dict, context: StepContext) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        share, model, length = self.run.ratio[1], self.model, batch["values"].shape[1]
        draws = dropped = None
        if share:
            shape = context.global_batch, share, length, model.head.num_draws
            draws = context.own(torch.randn(shape, generator=context.generator("tokens"))).flatten(0, 1)
            chance = torch.rand(shape[:2], generator=context.generator("captions"))
            dropped = (context.own(chance) < model.config.caption_dropout).flatten()
            draws, dropped = (value.to(batch["ids"].device, non_blocking=True) for value in (draws, dropped))
        decoder = self._decoder_loss(batch, context) if share and self._decodes(context.step) else None
        found = self.trained["generator"].module(batch, draws, dropped, decoder)
        report = {"answer_loss": found.answer, "answer_accuracy": found.correct} if self.run.ratio[0] else {}
        report |= {"visual_loss": found.visual} if share else {}
        report |= {"decoder_loss": found.decoder} if decoder is not None else {}
        yield "generator", found.total, {name: value.detach() for name, value in report.items()}

    def _decodes(self, step: int) -> bool:
        return self.decoder is not None and (step + 1) % self.run.decoder.every == 0

    def _decoder_loss(self, batch: dict, context: StepContext) -> Callable[[Tensor, Tensor], Tensor]:
        """The decoder's loss of the clips of a micro-batch."""
        generators = context.generators("decoder", self.run.ratio[1])
        extra = text_inputs(self.decoder, batch["caption"])
        return lambda states, mask: self.decoder.loss(batch["video"], states, mask, generators, **extra)

    def example_batch(self, size: int) -> dict[str, Any]:
        asked, texts, kinds = self.run.ratio[0], self.texts, self.layout.kinds
        questions = [question for group in texts.questions for question in group]
        longest = max(questions, key=lambda question: len(question.text), default=None)
        answer = longest.answer if longest else "x"
        tokens = {"values": torch.zeros(len(kinds), self.layout.dim), "kinds": torch.tensor(kinds), "key": ""}
        if self.run.train_projection:
            tokens["residuals"] = torch.zeros(kinds.count(MOTION), self.layout.patches, self.layout.dim)
        question = {**tokens, "question": longest.text if longest else TEXT, "answer": answer, "skill": ""}
        caption = {**tokens, "caption": max(texts.captions, key=len, default=TEXT)}
        if self.decoder is not None:
            about = self.run.decoder
            shape = 3, self.run.num_frames, about.height, about.width
            caption["video"] = torch.zeros(shape, dtype=torch.uint8)
        group = [question] * asked + [caption] * self.run.ratio[1]
        return Dialogues((), self.model.sequences, self.run.blind).collate([group] * size)

    @property
    def tokens_per_clip(self) -> int:
        return 0 if self.run.blind else len(self.layout.kinds)

    # -------------------------------------------------------------------------------------------- validation, export

    @torch.no_grad()
    def validate(self, batch: dict) -> dict[str, Tensor]:
        """Of each question whether the whole answer is what greedy decoding gives; of each caption the visual loss."""
        device, length = batch["ids"].device, batch["values"].shape[1]
        numbers = [zlib.crc32(text.encode()) for text in batch["caption"]]
        shape = length, self.model.head.num_draws
        draws = sample_noise(shape, self.run.train.seed, numbers).to(device) if numbers else None
        rows = JointLoss(self.model, self.trained_projection)(batch, draws).rows
        report = {}
        if self.run.ratio[0] and len(rows.right):
            report |= {"answer_loss": rows.answer, "accuracy": rows.right}
            for skill in sorted(set(batch["skill"])):
                chosen = torch.tensor([name == skill for name in batch["skill"]], device=device)
                report[f"accuracy/{skill.replace(' ', '_')}"] = rows.right[chosen]
        if self.run.ratio[1]:
            report["visual_loss"] = rows.visual
            if self.model.config.head.kind == "mse":
                report["visual_loss_of_the_mean"] = rows.constant
        return report

    @property
    def trained_projection(self) -> nn.Module | None:
        return self.model.parts["tokenizer"].projection if self.run.train_projection else None

    @torch.no_grad()
    def sample(self, batch: dict) -> Tensor | None:
        """clip | a video generated from its caption, uint8 (G, 3, T, H, 2 W); None without a decoder."""
        if self.decoder is None or not self.run.ratio[1]:
            return None
        if self.published is not None:
            self.model.parts.opened = (self.published,)
        made = generate_video(self.model, batch["caption"], seed=self.run.train.seed)
        return torch.cat((batch["video"].cpu(), pixels.to_uint8(made).cpu()), dim=-1)

    def export(self, folder: Path, training: Mapping[str, Any]) -> None:
        self.model.save_pretrained(folder, training=training)
