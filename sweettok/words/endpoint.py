"""A language model behind an OpenAI-compatible HTTP endpoint (a hosted one, vLLM, llama.cpp, Ollama, ...)."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sweettok.words.models import MAX_NEW_TOKENS, Answer, parse_choice

ANSWERS = ("free", "schema")
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between two attempts; each wait is twice the one before
SHOWN = 300  # characters of a server's message in an error


class EndpointError(OSError):
    """No attempt gave a valid answer."""


@dataclass
class Endpoint:
    """A language model behind an endpoint; thread-safe. Redirects are refused, as they could disclose the key.

    Args:
        answers: "free" for text that starts with a class name, "schema" for class names enforced by a JSON schema
            (`response_format`).
        timeout: seconds without data from the server. retries: attempts after the first.
        concurrency: parallel requests. key_name: environment variable with the API key (optional).
        body: further fields of each request; None removes a field.

    Raises:
        ImportError: httpx2 is not installed.
        ValueError: a setting is wrong, or the server rejects a request.
        EndpointError: the server cannot be reached, or all attempts fail. No message contains the key.
    """

    base_url: str
    model: str
    answers: str = "free"
    timeout: float = 60
    retries: int = 5
    concurrency: int = 4
    key_name: str = "OPENAI_API_KEY"
    body: dict[str, Any] = field(default_factory=dict)
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.answers not in ANSWERS:
            raise ValueError(f"answers of an endpoint must be {' or '.join(ANSWERS)}; got {self.answers!r}")
        if not 0 < self.timeout < math.inf or self.retries < 0 or self.concurrency < 1:
            raise ValueError("timeout must be above 0, retries at least 0, concurrency at least 1")
        try:
            import httpx2
        except ImportError as error:
            raise ImportError("an endpoint needs httpx2: pip install 'sweettok[http]'") from error
        try:
            url = httpx2.URL(self.base_url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"{self.base_url!r} is not a URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"the base URL must begin with http:// or https:// and a host, got {self.base_url!r}")
        key = os.environ.get(self.key_name, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"{self.key_name} contains characters that are not allowed in a key")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(headers=headers, timeout=self.timeout, follow_redirects=False)
        self._errors = httpx2.HTTPError
        self.attempts, self._lock = 0, threading.Lock()  # HTTP requests, including failed ones
        self.base_url = self.base_url.rstrip("/")
        names = ("model", "base_url", "answers", "body")
        self.identity = {"backend": "endpoint", **{name: getattr(self, name) for name in names}}

    def answer(self, prompt: str | list[dict[str, Any]], candidates: Sequence[str]) -> Answer:
        """`prompt`: a text, or parts of a message, such as images and texts."""
        fields = {"messages": [{"role": "user", "content": prompt}], "max_tokens": MAX_NEW_TOKENS}
        if self.answers == "schema":
            names = {"answer": {"type": "string", "enum": list(candidates)}}
            names = {"type": "object", "properties": names, "required": ["answer"], "additionalProperties": False}
            schema = {"name": "class_name", "strict": True, "schema": names}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
            fields["max_tokens"] = 4 * MAX_NEW_TOKENS  # for braces and quotes
        fields = {"model": self.model, "temperature": 0, **fields, **self.body}
        return self._request({name: value for name, value in fields.items() if value is not None}, candidates)

    def _request(self, fields: dict[str, Any], candidates: Sequence[str]) -> Answer:
        """Send a request, again after temporary failures."""
        url = f"{self.base_url}/chat/completions"
        for attempt in range(self.retries + 1):
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
            with self._lock:
                self.attempts += 1
            try:
                response = self._client.post(url, json=fields)
            except self._errors as error:  # connection errors and timeouts
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    try:
                        return self._read(response.json(), candidates)
                    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                        problem = f"an unexpected reply ({type(error).__name__}: {error})"
                else:
                    text = response.text.strip()[:SHOWN] or response.reason_phrase
                    problem = f"status {response.status_code}: {text}"
                    if response.is_redirect:
                        problem = f"a redirect to {response.headers.get('Location')}: give the final address"
                    if response.status_code not in RETRIED:
                        raise ValueError(f"{url} rejects the request with {problem}")
                    requested = response.headers.get("Retry-After", "")
                    wait = min(float(requested), LONGEST_WAIT) if requested.isdecimal() else wait
            if attempt < self.retries:
                self.sleep(wait)
        raise EndpointError(f"{url} failed in {self.retries + 1} attempts, the last time with {problem}")

    def _read(self, reply: dict[str, Any], candidates: Sequence[str]) -> Answer:
        text = choice = reply["choices"][0]["message"]["content"] or ""
        if self.answers == "schema":
            with suppress(ValueError, KeyError, TypeError):  # the server may ignore the schema
                choice = str(json.loads(text)["answer"])
        usage = reply.get("usage") or {}
        tokens = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        return Answer(parse_choice(choice, candidates), text, None, *tokens)
