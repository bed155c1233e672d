"""Answers of a language model, kept in a file as they come, so that an interrupted run continues."""

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

Question = tuple[str, tuple[str, ...]]  # prompt, candidates


class AnswerCache:
    """A file with one JSON line per answer, by a hash of model, prompt and candidates. A context manager.

    Lines are only appended, by one process at a time; a last line that a killed run left without its end is cut off.
    Raises ValueError for a file of another kind, InUseError (an OSError) while another process holds it.
    """

    def __init__(self, path: str | Path):
        self.path, self.answers, self._threads = Path(path), {}, threading.Lock()
        self._release = take_lock(self.path.with_name(f".{self.path.name}.lock"))
        self._file = self.path.open("a+b")
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        self._file.truncate(self._file.tell() - len(rest))
        try:
            for number, line in enumerate(lines, start=1):  # noqa: B007
                fields = json.loads(line)
                key = fields.pop("key")
                self.answers[key] = Answer(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.__exit__()
            raise ValueError(f"{path}, line {number} is not an answer ({error}): give another folder") from error

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._release()

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; safe for several threads."""
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False)
        with self._threads:
            self.answers[key] = answer
            self._file.write(f"{line}\n".encode())
            self._file.flush()


def question_key(model: LanguageModel, question: Question) -> str:
    """Hash of a model and a question."""
    return hashlib.sha256(json.dumps([model.identity, *question], sort_keys=True).encode()).hexdigest()


def ask(model: LanguageModel, questions: Sequence[Question], cache: AnswerCache) -> tuple[list[Answer], list[Answer]]:
    """The answers to all questions, in order, and those that were not in the cache; each question is asked once.

    Raises the model's first error. No further question is asked after it; answers under way are still kept.
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
