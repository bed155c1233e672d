"""Answers of a language model, saved as they arrive, so that an interrupted run can continue."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from sweettok.store import take_lock
from sweettok.words.models import Answer, LanguageModel

BEGIN = b'{"key": "'  # of every line
Question = tuple  # arguments of the model's `answer`, such as prompt and candidates


class AnswerCache:
    """A JSON Lines file of answers, each with a hash of model, prompt and candidates. A context manager.

    An incomplete last line, left by a killed run, is removed. Raises ValueError for another kind of file, InUseError
    (an OSError) while another process uses it.
    """

    def __init__(self, path: str | Path):
        self.path, self.answers, self._threads = Path(path), {}, threading.Lock()
        self._release = take_lock(self.path.with_name(f".{self.path.name}.lock"))
        self._file = self.path.open("a+b")
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        try:
            for number, line in enumerate(lines, start=1):  # noqa: B007
                fields = json.loads(line)
                key = fields.pop("key")
                self.answers[key] = Answer(**fields)
            number = len(lines) + 1
            if not rest.startswith(BEGIN[: len(rest)]):
                raise ValueError(f"it begins with {rest[:20]!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.__exit__()
            raise ValueError(f"{path}, line {number} is not an answer ({error}): give another folder") from error
        self._file.truncate(self._file.tell() - len(rest))

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._release()

    def put(self, key: str, answer: Answer) -> None:
        """Save an answer; thread-safe."""
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False)
        with self._threads:
            self.answers[key] = answer
            self._file.write(f"{line}\n".encode())
            self._file.flush()


def question_key(model: LanguageModel, question: Question) -> str:
    return hashlib.sha256(json.dumps([model.identity, *question], sort_keys=True).encode()).hexdigest()


def ask(model: LanguageModel, questions: Sequence[Question], cache: AnswerCache) -> tuple[list[Answer], list[Answer]]:
    """Answers to all questions, in order, and the new ones, which were not cached; equal questions are asked once.

    Raises the model's first error; no question is asked after it, but answers under way are saved.
    """
    keys = [question_key(model, question) for question in questions]
    pending = {key: question for key, question in zip(keys, questions, strict=True) if key not in cache.answers}

    def work(key: str) -> None:
        cache.put(key, model.answer(*pending[key]))
        bar.update(1)

    pool, total = ThreadPoolExecutor(model.concurrency), len(set(keys))
    with tqdm(total=total, initial=total - len(pending), desc="asking", unit="answer", disable=None) as bar:
        try:
            futures = [pool.submit(work, key) for key in pending]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
    for future in futures:
        if future in done:
            future.result()
    return [cache.answers[key] for key in keys], [cache.answers[key] for key in pending]
