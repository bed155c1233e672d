"""Answers and visual tokens from a language model, one token at a time with a cache of the earlier ones.

Letters: B rows, N positions, L visual tokens, C channels, D width, K options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sweettok.seeds import sample_noise
from sweettok.vtok.output import KEY, MOTION, VisualTokens
from sweettok.vtok.sequences import ANSWER, PADDING, pad_rows

if TYPE_CHECKING:
    from sweettok.vtok.language import VideoLanguageModel


@dataclass(frozen=True)
class GeneratedTokens:
    """Visual tokens, and the states (B, L, D) that predicted them, which the video decoder is given."""

    tokens: VisualTokens
    states: Tensor


class Reader:
    """Reads a prefix and then one embedding at a time.

    Args:
        roles: (B, N) of the prefix and all that may follow, padded on the left.
        kinds: (B, L) of its visual tokens.
    """

    def __init__(self, model: VideoLanguageModel, roles: Tensor, kinds: Tensor):
        self.backbone, self.layer, self.mask = model.backbone, model.config.state_layer, roles != PADDING
        self.places = model.positions(self.mask, roles, kinds)
        self.cache, self.count = self.backbone.new_cache(roles.shape[1]), 0

    def read(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix (B, n, D), or one embedding (B, 1, D) -> last states and those of `state_layer`, (B, D) each."""
        start, self.count = self.count, self.count + inputs.shape[1]
        places = self.places[..., start : self.count]
        last, chosen = self.backbone(inputs, self.mask[:, : self.count], places, self.cache, self.layer)
        return last[:, -1], chosen[:, -1]


@torch.no_grad()
def generate(
    model: VideoLanguageModel,
    prompt: str | Sequence[str],
    seconds: float | None = None,
    *,
    seed: int = 0,
    cfg_scale: float = 1.0,
    indices: Sequence[int] | None = None,
    like: VisualTokens | None = None,
    given: VisualTokens | None = None,
    progress: Callable[[int], None] | None = None,
) -> GeneratedTokens:
    """Generate visual tokens one after another.

    A sample depends on (seed, its index), its caption and the settings, not on the rest of the batch, except for
    rounding in matrix products of other sizes.

    Args:
        prompt: a caption, or a list of them.
        seconds: length of the videos, which sets the number of tokens.
        cfg_scale: guidance, 1 for none: what is predicted without a caption, plus the scale times the difference.
        indices: of the samples; 0, 1, 2, ... by default.
        like: instead of seconds, tokens whose times and kinds the generated ones get.
        given: the first tokens of each video, such as those of its key frame; generation continues them.
        progress: called with 1 after every token.

    Raises ValueError for settings out of range, and guidance of a model trained without caption dropout;
    FloatingPointError for tokens that are not finite.
    """
    prompts, indices = check_prompts(model, prompt, cfg_scale, indices)
    device = model.start.device
    times, kinds = layout(model, seconds, like, len(prompts), device)
    length = len(kinds)
    known = check_given(given, len(prompts), length)
    rows = [model.sequences.caption(length, text) for text in prompts]
    if cfg_scale != 1:
        rows += [model.sequences.caption(length, None)] * len(prompts)
    batch = {name: value.to(device) for name, value in pad_rows(rows, left=True).items()}
    draws = sample_noise((length, model.head.num_draws), seed, indices).to(device)
    reader = Reader(model, batch["roles"], kinds.expand(len(rows), -1))
    prefix = (value[:, :-length] for value in batch.values())
    inputs = model.embed(*prefix, model.start.new_zeros(len(rows), 0, model.width))
    states, values = [], []
    for i in range(length):
        last, chosen = reader.read(inputs)
        states.append(chosen[: len(prompts)].float())
        kind = kinds[i].expand(len(prompts), 1)
        if i < known:
            value = given.values[:, i].to(device)
        else:
            value = model.head.predict(last.float(), cfg_scale, draws[:, i])
            value = model.statistics.restore(value[:, None], kind)[:, 0]
        values.append(value)
        inputs = model.project(value[:, None], kind).repeat(len(rows) // len(prompts), 1, 1)
        if progress is not None:
            progress(1)
    found = torch.stack(values, 1)
    check_finite(found, indices)
    key = torch.zeros(len(prompts), dtype=torch.long, device=device) if like is None else like.key_frame.to(device)
    return GeneratedTokens(VisualTokens(times=times, kinds=kinds, key_frame=key, values=found), torch.stack(states, 1))


@torch.no_grad()
def generate_video(
    model: VideoLanguageModel,
    prompt: str | Sequence[str],
    *,
    seed: int = 0,
    cfg_scale: float = 1.0,
    indices: Sequence[int] | None = None,
    decoder_scale: float = 1.0,
    steps: int | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    tokens: GeneratedTokens | None = None,
) -> Tensor:
    """Generate visual tokens, and from them videos (B, 3, T, H, W) in [-0.5, 0.5] by the model's video decoder.

    Args:
        prompt, seed, cfg_scale, indices: as in `generate`.
        decoder_scale: guidance of the decoder; of decoders that did not learn to go without states, away from those of
            an empty caption.
        steps: of the decoder; None: its default.
        frames, size: T and (H, W); None: those of the clips in training. They set the number of tokens.
        tokens: what `generate` gave for these prompts and this length, to decode it.

    Raises ValueError as `generate` and the decoder do, and for a model without a decoder.
    """
    about, device = model.parts.settings, model.start.device
    decoder: Any = model.parts.open_decoder(device)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    frames, size = frames or model.parts.frames, size or (about.height, about.width)
    seconds = (frames - 1) / about.fps
    settings: dict[str, Any] = {"seed": seed, "indices": indices}
    found = tokens or generate(model, prompts, seconds, cfg_scale=cfg_scale, **settings)
    if decoder_scale != 1 and "decoder" not in model.parts:
        settings["negative"] = generate(model, [""] * len(prompts), seconds, **settings).states
    if steps is not None:
        settings["steps"] = steps
    return decoder.sample(
        found.states, frames, size, cfg_scale=decoder_scale, **settings, **text_inputs(decoder, prompts)
    )


def text_inputs(decoder: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """What a decoder wants to know of the prompts besides the states: HunyuanVideo, their CLIP vectors."""
    inner = getattr(decoder, "decoder", decoder)
    if getattr(getattr(inner, "pipeline", None), "text_encoder_2", None) is None or not hasattr(inner, "pooled"):
        return {}
    return {"pooled": inner.pooled(list(prompts))}


def check_prompts(
    model: VideoLanguageModel, prompt: str | Sequence[str], cfg_scale: float, indices: Sequence[int] | None
) -> tuple[list[str], list[int]]:
    """Captions and the index of each sample. Raises ValueError for settings that do not fit."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    indices = list(range(len(prompts)) if indices is None else indices)
    if not prompts or len(indices) != len(prompts):
        raise ValueError(f"expected at least one caption, and an index for each; got {len(prompts)}, {len(indices)}")
    if not 0 <= cfg_scale < math.inf:
        raise ValueError(f"cfg_scale must be a number of at least 0; got {cfg_scale}")
    if cfg_scale != 1 and not model.config.caption_dropout:
        raise ValueError(
            "guidance needs a model trained without some captions, and this one was not: use cfg_scale=1, or train "
            "with language.caption_dropout above 0"
        )
    return prompts, indices


def check_finite(values: Tensor, indices: Sequence[int]) -> None:
    """FloatingPointError naming the first token (B, L, C) that is not finite, and its sample."""
    bad = (~values.isfinite().all(-1)).nonzero()
    if len(bad):
        row, place = bad[bad[:, 1].argmin()].tolist()
        raise FloatingPointError(f"token {place} of sample {indices[row]} is not finite: look for NaN in the weights")


def layout(
    model: VideoLanguageModel, seconds: float | None, like: VisualTokens | None, batch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Times (B, L) and kinds (L,) of the tokens to generate."""
    if (seconds is None) == (like is None):
        raise ValueError("give either the seconds of the video, or `like`, tokens with its layout")
    if like is not None:
        if len(like) != batch:
            raise ValueError(f"`like` has {len(like)} clips for {batch} captions: give one for each")
        return like.times.to(device), like.kinds.to(device)
    rate, key = model.config.tokens_per_second, model.config.key_tokens
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be a number of at least 0; got {seconds}")
    moments = torch.arange(1, 1 + math.floor(seconds * rate + 0.5), device=device)
    times = torch.cat((torch.zeros(key, device=device), moments / rate)).expand(batch, -1)
    kinds = torch.cat((torch.full((key,), KEY, device=device), torch.full_like(moments, MOTION)))
    return times, kinds


def check_given(given: VisualTokens | None, batch: int, length: int) -> int:
    """Number of given tokens. Raises ValueError if they do not fit."""
    if given is None:
        return 0
    count = given.values.shape[1]
    if len(given) != batch or count > length:
        raise ValueError(f"{len(given)} x {count} tokens are given for {batch} captions and {length} tokens of each")
    return count


def answer(
    model: VideoLanguageModel,
    video: Any,
    question: str | Sequence[str],
    options: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    **settings: Any,
) -> str | list[str]:
    """Answer questions about videos.

    Args:
        video: VisualTokens, or what the model's `source` makes tokens of; None: the question alone.
        question: one for all clips, or a list with one for each.
        options: the likeliest of these is the answer, by the log probability of all of its tokens; None: greedy text,
            of at most `max_new_tokens`, and as many as the model has positions for.
        settings: of `source`, such as fps.

    Returns the answer; a list of them if questions are a list, or there are several clips.

    Raises ValueError for a video without a `source`, no question, options that repeat, and sizes that do not fit.
    """
    tokens = find_tokens(model, video, **settings)
    several = not isinstance(question, str) or (tokens is not None and len(tokens) > 1)
    questions = [question] * (1 if tokens is None else len(tokens)) if isinstance(question, str) else question
    if not questions or not all(isinstance(text, str) and text.strip() for text in questions):
        raise ValueError(f"expected a question, or a list with one for each clip; got {question!r}")
    if options is None:
        found = greedy(model, tokens, questions, max_new_tokens)
    else:
        best = option_scores(model, tokens, questions, options).argmax(1)
        found = [options[i] for i in best.tolist()]
    return found if several else found[0]


def find_tokens(model: VideoLanguageModel, video: Any, **settings: Any) -> VisualTokens | None:
    """Tokens of a video, by the model's `source` if they are none yet."""
    if video is None or isinstance(video, VisualTokens):
        return video
    if model.source is None:
        raise ValueError(
            "a video can be answered about only with a tokenizer: set model.source = tokenizer.encode, or give its "
            "VisualTokens"
        )
    return model.source(video, **settings)


@torch.no_grad()
def option_scores(
    model: VideoLanguageModel, tokens: VisualTokens | None, questions: Sequence[str], options: Sequence[str]
) -> Tensor:
    """Log probabilities (B, K) of answers to a question for each clip; tokens None: of the questions alone."""
    known = [] if isinstance(options, str) else [text.strip() for text in options if isinstance(text, str)]
    if not known or "" in known or len(set(known)) != len(options):
        raise ValueError(f"options must be a list of different answers; got {options!r}")
    values, kinds = visual_input(model, tokens, len(questions))
    rows = [model.sequences.question(values.shape[1], q, option) for q in questions for option in options]
    batch = {name: value.to(values.device) for name, value in pad_rows(rows).items()}
    visual = model.project(values, kinds).repeat_interleave(len(options), 0)
    mask = batch["roles"] != PADDING
    places = model.positions(mask, batch["roles"], kinds.repeat_interleave(len(options), 0))
    last, _ = model.backbone(model.embed(batch["ids"], batch["roles"], visual), mask, places)
    longest = max(row.roles.count(ANSWER) for row in rows)
    is_answer = batch["roles"] == ANSWER
    first = is_answer.long().argmax(1, keepdim=True)
    places = (first + torch.arange(longest, device=first.device)).clamp_max(mask.shape[1] - 1)
    logits = model.backbone.logits(last.gather(1, (places - 1)[..., None].expand(-1, -1, last.shape[-1])))
    scores = logits.log_softmax(-1).gather(2, batch["ids"].gather(1, places)[..., None])[..., 0]
    counted = torch.arange(longest, device=first.device) < is_answer.sum(1, keepdim=True)
    return (scores * counted).sum(1).view(len(questions), len(options))


@torch.no_grad()
def greedy(
    model: VideoLanguageModel, tokens: VisualTokens | None, questions: Sequence[str], max_new_tokens: int
) -> list[str]:
    """The likeliest text, token by token, until the end of the answer or `max_new_tokens`."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1; got {max_new_tokens}")
    values, kinds = visual_input(model, tokens, len(questions))
    rows = [model.sequences.question(values.shape[1], question) for question in questions]
    if model.backbone.max_length is not None:
        max_new_tokens = min(max_new_tokens, model.backbone.max_length + 1 - max(len(row.ids) for row in rows))
    batch = {name: value.to(values.device) for name, value in pad_rows(rows, left=True).items()}
    inputs = model.embed(batch["ids"], batch["roles"], model.project(values, kinds))
    following = batch["roles"].new_full((len(questions), max_new_tokens), ANSWER)
    reader = Reader(model, torch.cat((batch["roles"], following), 1), kinds)
    end = model.sequences.end_id
    words = torch.zeros(len(questions), 0, dtype=torch.long, device=values.device)
    ended = torch.zeros(len(questions), dtype=torch.bool, device=values.device)
    for _ in range(max_new_tokens):
        last, _ = reader.read(inputs)
        word = model.backbone.logits(last).argmax(-1, keepdim=True)
        words, ended = torch.cat((words, word), 1), ended | (word[:, 0] == end)
        if ended.all():
            break
        inputs = model.backbone.embeddings(word)
    answers = [row[: row.index(end)] if end in row else row for row in words.tolist()]
    return [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in answers]


def visual_input(model: VideoLanguageModel, tokens: VisualTokens | None, batch: int) -> tuple[Tensor, Tensor]:
    """Values (B, L, C) and kinds (B, L) for as many questions; L is 0 without tokens."""
    device = model.start.device
    if tokens is None:
        empty = torch.zeros(batch, 0, model.config.visual_dim, device=device)
        return empty, empty[..., 0].long()
    if len(tokens) not in (1, batch):
        raise ValueError(f"expected a question for each clip; got {len(tokens)} clips and {batch} questions")
    values = tokens.values.to(device).expand(batch, -1, -1)
    return values, tokens.kinds.to(device).expand(values.shape[:2])
