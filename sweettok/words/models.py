"""Language models that classify a clip by its words: their interface, and a local Hugging Face model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import torch

MAX_NEW_TOKENS = 16  # of a free answer


@dataclass(frozen=True)
class Answer:
    """Answer of a model to one prompt.

    choice: the chosen candidate, or None. text: generated text of free answers. scores: log probabilities of the
    candidates of likelihood answers.
    """

    choice: str | None
    text: str | None = None
    scores: dict[str, float] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class LanguageModel(Protocol):
    """Interface of a model in the few-shot evaluation."""

    identity: dict[str, Any]  # key of cached answers; different for models that may answer differently
    concurrency: int  # prompts in parallel

    def answer(self, prompt: str, candidates: Sequence[str]) -> Answer: ...


def parse_choice(text: str, candidates: Sequence[str]) -> str | None:
    """The longest candidate at the start of an answer, ignoring quotes, stars and case; None if there is none."""
    start = text.strip().lstrip("\"'`*<").casefold()
    fitting = [name for name in candidates if start.startswith(name.casefold())]
    return max(fitting, key=len) if fitting else None


def continuation(candidate: str) -> str:
    """Text of an answer after the prompt; the line break distinguishes `rise` from `rise-again`."""
    return f" {candidate}\n"


class LocalModel:
    """A causal language model and its tokenizer in a folder of transformers' `save_pretrained`.

    Only safetensors weights are read; nothing is downloaded, and no code of the folder is run.

    Args:
        answers: "likelihood" chooses the candidate with the highest log probability; "free" generates greedily, and
            the text must start with a candidate.
        precision: "no" for float32, or "bf16".

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no model in the folder.
        ValueError: a prompt is longer than the model's context.
    """

    concurrency = 1

    def __init__(self, folder: str | Path, answers: str = "likelihood", precision: str = "no", device: Any = "cpu"):
        if answers not in ("likelihood", "free"):
            raise ValueError(f"answers of a local model must be likelihood or free; got {answers!r}")
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ImportError("a local language model needs transformers: pip install 'sweettok[llm]'") from error
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json: give the folder of a Hugging Face causal model")
        local = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **local)
        self.model = model.to(device, torch.bfloat16 if precision == "bf16" else torch.float32).eval()
        self.device, self.answers = device, answers
        self.max_length = getattr(model.config, "max_position_embeddings", None)
        # Only the last logits of a prompt are needed; not all models have this option.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime) for path in folder.glob("*.*"))
        self.identity = {"backend": "local", "model": folder.resolve().name, "files": files}
        self.identity |= {"answers": answers, "precision": precision}

    @torch.no_grad()
    def answer(self, prompt: str, candidates: Sequence[str]) -> Answer:
        return self._generate(prompt, candidates) if self.answers == "free" else self._compare(prompt, candidates)

    def _generate(self, prompt: str, candidates: Sequence[str]) -> Answer:
        ids = self._ids(prompt)
        self._check_length(len(ids) + MAX_NEW_TOKENS)
        inputs, end = torch.tensor([ids], device=self.device), self.tokenizer.eos_token_id
        pad = end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": MAX_NEW_TOKENS, "pad_token_id": pad}
        output = self.model.generate(inputs, attention_mask=torch.ones_like(inputs), **greedy)
        generated = output[0, len(ids) :]
        text = self.tokenizer.decode(generated, skip_special_tokens=True)
        return Answer(parse_choice(text, candidates), text, None, len(ids), len(generated))

    def _compare(self, prompt: str, candidates: Sequence[str]) -> Answer:
        sequences = [self._ids(prompt + continuation(name)) for name in candidates]
        self._check_length(max(map(len, sequences)))
        # A token may contain the end of the prompt and the start of an answer. Scores start where the sequences
        # differ, so that all candidates are scored after the same tokens.
        shared = common_length([self._ids(prompt), *sequences])
        if shared == 0:
            raise ValueError("the tokens of the prompt and of its answers have no common prefix")
        prefix = torch.tensor([sequences[0][:shared]], device=self.device)
        output = self.model(prefix, use_cache=True, **self._last_only)
        last, cache, scores = output.logits[:, -1:], output.cache, {}
        for name, ids in zip(candidates, sequences, strict=True):
            rest, logits = torch.tensor([ids[shared:]], device=self.device), last
            if rest.shape[1] > 1:
                more = self.model(rest[:, :-1], cache=copy.deepcopy(cache), use_cache=True).logits
                logits = torch.cat((last, more), dim=1)
            scores[name] = logits.float().log_softmax(-1).gather(2, rest[..., None]).sum().item()
        return Answer(
            max(scores, key=scores.__getitem__), None, scores, shared, sum(len(ids) - shared for ids in sequences)
        )

    def _ids(self, text: str) -> list[int]:
        ids, end = self.tokenizer(text).input_ids, self.tokenizer.eos_token_id
        return ids[:-1] if end is not None and len(ids) > 1 and ids[-1] == end else ids

    def _check_length(self, length: int) -> None:
        if self.max_length is not None and length > self.max_length:
            sizes = f"a prompt of {length} tokens does not fit the model's context of {self.max_length}"
            raise ValueError(f"{sizes}: give fewer words, shots, classes or repeats")


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix."""
    shortest = min(map(len, sequences))
    return next((i for i in range(shortest) if len({ids[i] for ids in sequences}) > 1), shortest)
