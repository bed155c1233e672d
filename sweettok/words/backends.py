"""Language models that name a clip: what they are asked and what they answer; and a local Hugging Face model."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

MAX_NEW_TOKENS = 16  # of a free answer


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt.

    choice: one of the candidates, or None for an answer that names none of them. text: a free answer. scores: log
    probabilities of the candidates, where they were compared. Token counts are those that the model was run on.
    """

    choice: str | None
    text: str | None = None
    scores: dict[str, float] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Backend(Protocol):
    """A language model. `identity`, plain data, tells apart all that may answer differently."""

    identity: dict[str, Any]
    concurrency: int  # prompts it may be asked at once

    def answer(self, prompt: str, candidates: Sequence[str]) -> Answer: ...


def named_choice(text: str, candidates: Sequence[str]) -> str | None:
    """The candidate that an answer begins with, the longest of them; quotes, stars and letter case do not matter."""
    said = text.strip().lstrip("\"'`*<").casefold()
    fitting = [name for name in candidates if said.startswith(name.casefold())]
    return max(fitting, key=len) if fitting else None


def continuation(candidate: str) -> str:
    """What follows a prompt if this is the answer; the end of the line keeps `rise` apart from `rise-again`."""
    return f" {candidate}\n"


def likeliest(scores: dict[str, float]) -> str:
    """The candidate of the highest score, the first of several."""
    return max(scores, key=scores.__getitem__)


class LocalModel:
    """A causal language model in a folder, as transformers' save_pretrained writes it with its tokenizer.

    answers "likelihood": the candidate with the highest log probability, from its first letter to the end of its line.
    "free": what the model writes, greedily, must begin with a candidate. Weights are read from safetensors alone, and
    nothing is fetched and no code of the folder run. One prompt is answered at a time.

    Raises ValueError where transformers is not installed and for prompts longer than the model reads,
    FileNotFoundError for a folder that holds no model.
    """

    concurrency = 1

    def __init__(self, folder: str | Path, answers: str = "likelihood", precision: str = "no", device: Any = "cpu"):
        if answers not in ("likelihood", "free"):
            raise ValueError(f"a local model answers by likelihood or free; got {answers!r}")
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ValueError("a local language model needs transformers: pip install 'sweettok[llm]'") from error
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json: give the folder of a Hugging Face causal model")
        local = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **local)
        self.model = model.to(device, torch.bfloat16 if precision == "bf16" else torch.float32).eval()
        self.device, self.answers = device, answers
        self.max_length = getattr(model.config, "max_position_embeddings", None)
        self._takes_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        about = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime) for path in Path(folder).glob("*.*"))
        self.identity = {"backend": "local", "model": Path(folder).resolve().name, "config": about, "files": files,
                         "answers": answers, "precision": precision}  # fmt: skip

    @torch.no_grad()
    def answer(self, prompt: str, candidates: Sequence[str]) -> Answer:
        return self._free(prompt, candidates) if self.answers == "free" else self._likelihood(prompt, candidates)

    def _free(self, prompt: str, candidates: Sequence[str]) -> Answer:
        ids = self._ids(prompt)
        self._check_length(len(ids) + MAX_NEW_TOKENS)
        fed = torch.tensor([ids], device=self.device)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        out = self.model.generate(
            fed, attention_mask=torch.ones_like(fed), do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=pad,
        )  # fmt: skip
        written = out[0, len(ids) :]
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        return Answer(named_choice(text, candidates), text, None, len(ids), len(written))

    def _likelihood(self, prompt: str, candidates: Sequence[str]) -> Answer:
        whole = [self._ids(prompt + continuation(name)) for name in candidates]
        self._check_length(max(map(len, whole)))
        # Tokens may join the last letters of the prompt with the first of an answer: what is scored begins where the
        # answers part, so that all are scored after the same tokens.
        shared = common_length([self._ids(prompt), *whole])
        if shared == 0:
            raise ValueError("the model's tokens of the prompt and its answers have no common beginning")
        last, memory = self._read(torch.tensor([whole[0][:shared]], device=self.device))
        scores = {}
        for name, ids in zip(candidates, whole, strict=True):
            rest = torch.tensor([ids[shared:]], device=self.device)
            logits = last
            if rest.shape[1] > 1:
                more = self.model(rest[:, :-1], past_key_values=copy.deepcopy(memory), use_cache=True).logits
                logits = torch.cat((last, more), dim=1)
            scores[name] = logits.float().log_softmax(-1).gather(2, rest[..., None]).sum().item()
        return Answer(likeliest(scores), None, scores, shared, sum(map(len, whole)) - shared * len(whole))

    def _read(self, fed: Tensor) -> tuple[Tensor, Any]:
        """Logits (1, 1, words) after the tokens, and the memory of them."""
        only = {"logits_to_keep": 1} if self._takes_last else {}
        out = self.model(fed, use_cache=True, **only)
        return out.logits[:, -1:], out.past_key_values

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text).input_ids
        ends = self.tokenizer.eos_token_id
        return ids[:-1] if ends is not None and len(ids) > 1 and ids[-1] == ends else ids

    def _check_length(self, length: int) -> None:
        if self.max_length is not None and length > self.max_length:
            raise ValueError(f"a prompt of {length} tokens does not fit the {self.max_length} that the model reads: "
                             "give fewer words, shots, classes or repeats")  # fmt: skip


def common_length(runs: Sequence[Sequence[int]]) -> int:
    """How many entries all runs begin with."""
    shortest = min(map(len, runs))
    return next((i for i in range(shortest) if len({run[i] for run in runs}) > 1), shortest)
