"""A language model behind an OpenAI-compatible HTTP endpoint, hosted or of one's own (vLLM, llama.cpp, Ollama ...)."""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sweettok.words.backends import MAX_NEW_TOKENS, Answer, continuation, likeliest, named_choice

WAYS = ("free", "schema", "likelihood")
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LONGEST_WAIT = 60.0  # seconds between two attempts
SHOWN = 300  # characters of a server's message in an error


class EndpointError(OSError):
    """The endpoint gave no usable answer, however often it was asked."""


@dataclass(frozen=True)
class EndpointConfig:
    """Where the model is and how it is asked.

    answers "free": a chat message, whose answer must begin with a class name. "schema": the same with a JSON schema
    that allows class names only (`response_format`). "likelihood": `/completions` with `echo` and `logprobs` tells the
    log probability of each class name after the prompt; few servers offer it (vLLM does). body: further fields of each
    request; null takes one away. timeout: seconds of one attempt. retries: after the first attempt. key_name: of the
    environment variable that holds the key; without such a variable no key is sent.
    """

    base_url: str
    model: str
    answers: str = "free"
    timeout: float = 60
    retries: int = 5
    concurrency: int = 4
    first_wait: float = 1.0
    key_name: str = "OPENAI_API_KEY"
    body: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"the base URL must begin with http:// or https://, got {self.base_url!r}")
        if self.answers not in WAYS:
            raise ValueError(f"an endpoint answers {', '.join(WAYS)}; got {self.answers!r}")
        if not (0 < self.timeout < math.inf and self.retries >= 0 and self.concurrency >= 1 and self.first_wait >= 0):
            raise ValueError("timeout must be above 0, retries at least 0 and concurrency at least 1; got "
                             f"{self.timeout}, {self.retries} and {self.concurrency}")  # fmt: skip


class Endpoint:
    """Asks an endpoint; safe for several threads at once. `attempts` counts HTTP requests, those that failed too.

    Raises ValueError for requests that the server refuses, EndpointError where it cannot be reached or fails, after
    all attempts. Neither shows the key.
    """

    def __init__(self, config: EndpointConfig, sleep: Callable[[float], None] = time.sleep):
        self.config, self.concurrency, self._sleep = config, config.concurrency, sleep
        self.attempts, self._lock = 0, threading.Lock()
        self.identity = {"backend": "endpoint", "model": config.model, "base_url": config.base_url.rstrip("/"),
                         "answers": config.answers, "body": dict(config.body)}  # fmt: skip

    def answer(self, prompt: str, candidates: Sequence[str]) -> Answer:
        if self.config.answers == "likelihood":
            return self._asked("completions", self._scoring_body(prompt, candidates),
                               lambda reply: read_scores(reply, prompt, candidates))  # fmt: skip
        return self._asked("chat/completions", self._chat_body(prompt, candidates), self._reader(candidates))

    def _reader(self, candidates: Sequence[str]) -> Callable[[dict[str, Any]], Answer]:
        schema = self.config.answers == "schema"

        def read(reply: dict[str, Any]) -> Answer:
            text = reply["choices"][0]["message"]["content"] or ""
            return Answer(named_choice(_answer_field(text) if schema else text, candidates), text, None, *_usage(reply))

        return read

    def _chat_body(self, prompt: str, candidates: Sequence[str]) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": MAX_NEW_TOKENS}
        if self.config.answers == "schema":
            names = {"type": "object", "properties": {"answer": {"type": "string", "enum": list(candidates)}},
                     "required": ["answer"], "additionalProperties": False}  # fmt: skip
            schema = {"name": "class_name", "strict": True, "schema": names}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
            body["max_tokens"] = 4 * MAX_NEW_TOKENS  # braces and quotes too
        return body

    def _scoring_body(self, prompt: str, candidates: Sequence[str]) -> dict[str, Any]:
        prompts = [prompt + continuation(name) for name in candidates]
        return {"prompt": prompts, "temperature": 0, "max_tokens": 1, "echo": True, "logprobs": 1}

    def _asked(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], Answer]) -> Answer:
        """The answer to a request, repeated after failures that may pass."""
        body = {"model": self.config.model, **body, **dict(self.config.body)}
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        url = f"{self.config.base_url.rstrip('/')}/{path}"
        for attempt in range(self.config.retries + 1):
            wait = min(self.config.first_wait * 2**attempt, LONGEST_WAIT)
            try:
                return read(self._post(url, data))
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {_message(error)}"
                if error.code not in RETRIED:
                    raise ValueError(f"{url} refuses the request with {problem}") from error
                wait = _asked_wait(error.headers.get("Retry-After"), wait)
            except (OSError, http.client.HTTPException) as error:  # refused, broken off, too late
                problem = f"{type(error).__name__}: {error}"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                problem = f"no reply of the expected form ({type(error).__name__}: {error})"
            if attempt < self.config.retries:
                self._sleep(wait)
        raise EndpointError(f"{url} failed {self.config.retries + 1} times, at last with {problem}")

    def _post(self, url: str, data: bytes) -> dict[str, Any]:
        with self._lock:
            self.attempts += 1
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.config.key_name)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, data=data, headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=self.config.timeout) as reply:
            return json.loads(reply.read())


def read_scores(reply: dict[str, Any], prompt: str, candidates: Sequence[str]) -> Answer:
    """Log probabilities of what follows the prompt in each echoed text, up to the end of the candidate's line."""
    choices = {choice.get("index", 0): choice["logprobs"] for choice in reply["choices"]}
    scores = {}
    for number, name in enumerate(candidates):
        told = choices[number]
        start = "".join(told["tokens"]).find(prompt)  # after a token that begins every text, where the server shows it
        if start < 0:
            raise ValueError("the prompt is not echoed: the server cannot tell likelihoods, try other answers")
        first, end, total, place = start + len(prompt), start + len(prompt + continuation(name)), 0.0, 0
        for token, value in zip(told["tokens"], told["token_logprobs"], strict=True):
            if place < end and place + len(token) > first:
                total += value
            place += len(token)
        scores[name] = total
    return Answer(likeliest(scores), None, scores, *_usage(reply))


def _usage(reply: dict[str, Any]) -> tuple[int, int]:
    usage = reply.get("usage") or {}
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)


def _answer_field(text: str) -> str:
    """The answer in the JSON that the schema asks for; the text itself from a server that ignored it."""
    try:
        return str(json.loads(text)["answer"])
    except (ValueError, KeyError, TypeError):
        return text


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return error.read().decode("utf-8", "replace").strip()[:SHOWN] or error.reason
    except (OSError, http.client.HTTPException):
        return str(error.reason)


def _asked_wait(told: str | None, wait: float) -> float:
    """Seconds to wait: what the server asks for, within bounds, or `wait`."""
    try:
        return min(max(float(told), 0.0), LONGEST_WAIT) if told is not None else wait
    except ValueError:  # a date
        return wait
