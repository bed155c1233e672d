"""Answers are kept as they come, so that a run that breaks off goes on where it was; and what they cost."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sweettok.words.backends import Answer, Backend

Question = tuple[str, tuple[str, ...]]  # prompt, candidates


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def __post_init__(self):
        if self.prompt < 0 or self.completion < 0:
            raise ValueError(f"prices must be at least 0, got {self.prompt} and {self.completion}")

    def of(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Counts of answers and of their tokens, and the price of these."""
        fed, written = (sum(getattr(a, name) for a in answers) for name in ("prompt_tokens", "completion_tokens"))
        price = (fed * self.prompt + written * self.completion) / 1e6
        return {"answers": len(answers), "prompt_tokens": fed, "completion_tokens": written, "price": price}


class AnswerCache:
    """A file of one JSON line an answer, found again by all that decides it: model, prompt, candidates.

    A line that was cut off when a run was killed is dropped. Raises ValueError for a file of another kind.
    """

    def __init__(self, path: str | Path):
        self.path, self._lock = Path(path), threading.Lock()
        self._answers: dict[str, Answer] = {}
        whole = self.path.read_bytes() if self.path.is_file() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        for number, line in enumerate(kept.split(b"\n")[:-1], start=1):
            try:
                about = json.loads(line)
                key = about.pop("key")
                self._answers[key] = Answer(**about)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number} is no answer ({error}): give another folder") from error
        if len(kept) < len(whole):
            self.path.write_bytes(kept)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False)
        with self._lock:
            self._answers[key] = answer
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def question_key(backend: Backend, question: Question) -> str:
    told = json.dumps([backend.identity, *question], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def ask(backend: Backend, questions: Sequence[Question], cache: AnswerCache) -> tuple[list[Answer], list[Answer]]:
    """The answers to all questions, in order; and those that had to be asked for, each question once.

    If one question fails, no more are begun, what is under way is kept, and the error of the first is raised.
    """
    keys = [question_key(backend, question) for question in questions]
    pending = {key: question for key, question in zip(keys, questions, strict=True) if cache.get(key) is None}

    def work(key: str) -> None:
        cache.put(key, backend.answer(*pending[key]))
        bar.update(1)

    pool, total = ThreadPoolExecutor(backend.concurrency), len(set(keys))
    with tqdm(total=total, initial=total - len(pending), desc="asking", unit="answer", disable=None) as bar:
        try:
            futures = [pool.submit(work, key) for key in pending]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            broken = next((future for future in futures if future in done and future.exception()), None)
        finally:
            pool.shutdown(cancel_futures=True)
    if broken is not None:
        broken.result()
    return [cache.get(key) for key in keys], [cache.get(key) for key in pending]
