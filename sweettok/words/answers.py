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
    """A file with one JSON line per answer, addressed by a hash of model, prompt and candidates. A context manager.

    Lines are only appended, and one process at a time holds the file. A last line without its end, which a killed run
    leaves, is cut off.

    Raises ValueError for a file of another kind, InUseError (an OSError) while another process uses it.
    """

    def __init__(self, path: str | Path):
        self.path, self._threads = Path(path), threading.Lock()
        self._release = take_lock(self.path.with_name(f".{self.path.name}.lock"))
        self._file = self.path.open("a+b")
        try:
            self._answers = self._load()
        except ValueError:
            self.close()
            raise

    def _load(self) -> dict[str, Answer]:
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        answers = {}
        for number, line in enumerate(lines, start=1):
            try:
                fields = json.loads(line)
                key = fields.pop("key")
                answers[key] = Answer(**fields)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                where = f"{self.path}, line {number}"
                raise ValueError(f"{where} is not an answer ({error}): give another folder") from error
        self._file.truncate(self._file.tell() - len(rest))
        return answers

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        self._release()

    def get(self, key: str) -> Answer | None:
        """The answer to the question of this key, None if it was not asked yet."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; safe for several threads."""
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False)
        with self._threads:
            self._answers[key] = answer
            self._file.write(f"{line}\n".encode())
            self._file.flush()


def question_key(model: LanguageModel, question: Question) -> str:
    """Hash of a model and a question."""
    return hashlib.sha256(json.dumps([model.identity, *question], sort_keys=True).encode()).hexdigest()


def ask(model: LanguageModel, questions: Sequence[Question], cache: AnswerCache) -> tuple[list[Answer], list[Answer]]:
    """Answer each question once, from the cache where possible.

    Returns:
        The answers to all questions, in order, and those that were new.

    Raises:
        The first error of the model. No further questions are asked after it; answers under way are still kept.
    """
    keys = [question_key(model, question) for question in questions]
    pending = {key: question for key, question in zip(keys, questions, strict=True) if cache.get(key) is None}

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
    return [cache.get(key) for key in keys], [cache.get(key) for key in pending]
