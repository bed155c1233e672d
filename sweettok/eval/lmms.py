"""VTok's language model in lmms-eval (0.7), which finds it by the entry point `lmms_eval.models` of this package.

Requests are as lmms-eval makes them: `chat` for its own tasks with messages, `simple` for tasks that score options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torchvision.transforms.functional import pil_to_tensor

from sweettok.data.reader import is_image
from sweettok.distributed import join_processes
from sweettok.vtok.language import VideoLanguageModel
from sweettok.vtok.model import VTok
from sweettok.vtok.output import VisualTokens
from sweettok.vtok.sampling import option_scores

try:
    from lmms_eval.api.model import lmms
except ImportError:  # the classes can be imported without it
    lmms = object

NAME = "sweettok_vtok"
MAX_NEW_TOKENS = 32  # of answers, where a task does not say


def manifest() -> Any:
    """What the entry point gives lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    paths = {kind: f"{__name__}.{cls.__name__}" for kind, cls in (("chat", ChatModel), ("simple", SimpleModel))}
    return ModelManifest(NAME, chat_class_path=paths["chat"], simple_class_path=paths["simple"])


class ChatModel(lmms):
    """A saved VideoLanguageModel that answers greedily about at most one video or image of each request.

    Args:
        pretrained: folder or Hub repository of the language model.
        tokenizer: of a VTok, if none is saved with the language model.
        device: by default the first GPU, or the CPU.
        max_frames: only so many frames of a video are read.
        batch_size, max_batch_size: accepted, as lmms-eval passes them; requests are answered one by one.

    Raises ValueError for a model without a tokenizer, and requests with several videos, parts of videos, or sampling.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        device: str | None = None,
        max_frames: int | None = None,
        batch_size: Any = 1,
        max_batch_size: Any = None,
    ):
        super().__init__()
        device = device or join_processes().device
        self.model = VideoLanguageModel.from_pretrained(pretrained).to(device)
        if tokenizer is not None:
            self.model.source = VTok.from_pretrained(tokenizer).to(device).encode
        if self.model.source is None:
            raise ValueError(f"{pretrained} has no tokenizer of videos: give tokenizer=, the folder of a VTok")
        self.max_frames, self._tokens = max_frames, lru_cache(8)(self._encode)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers, up to the first text of `until`."""
        found = []
        for text, media, settings in map(self._asked, requests):
            if settings.get("do_sample") or (settings.get("temperature") or 0) > 0:
                raise ValueError(f"{NAME} answers greedily: set temperature=0 and do_sample=false in --gen_kwargs")
            most = settings.get("max_new_tokens") or MAX_NEW_TOKENS
            answer = self.model.answer(self.tokens(media), text, max_new_tokens=most)
            until = settings.get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                answer = answer.split(stop)[0] if stop else answer
            found.append(answer)
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log probability of each answer and its end, and whether it is the greedy one."""
        found = []
        for request in requests:
            text, answer, *rest = request.args
            visual, doc = (None, None) if not rest else (rest[0], self._doc(*rest[1:]))
            answer = (answer(doc) if callable(answer) else answer).strip()
            tokens = self.tokens([] if visual is None else visual(doc) or [])
            score = option_scores(self.model, tokens, [text], [answer]).item()
            most = len(self.model.tokenizer(answer, add_special_tokens=False).input_ids) + 1
            found.append((score, self.model.answer(tokens, text, max_new_tokens=most) == answer))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError(f"{NAME} answers single questions; this task asks several in a row")

    def tokens(self, media: Sequence[Any]) -> VisualTokens | None:
        """Tokens of the video or image of a request, paths or a PIL image; None without."""
        if len(media) > 1:
            raise ValueError(f"{NAME} reads one video or image in a request; this one has {len(media)}")
        if not media:
            return None
        return self._tokens(media[0]) if isinstance(media[0], str | Path) else self._encode(media[0])

    def _encode(self, source: Any) -> VisualTokens:
        if not isinstance(source, str | Path):
            return self.model.source(pil_to_tensor(source.convert("RGB"))[None])
        source = str(source).removeprefix("file://")
        limit = {} if self.max_frames is None or is_image(source) else {"max_frames": self.max_frames}
        return self.model.source(source, **limit)

    def _asked(self, request: Any) -> tuple[str, list[Any], dict[str, Any]]:
        """Text, media and settings of a request."""
        _, messages, settings, *where = request.args
        parts = list(contents(messages(self._doc(*where))))
        return "\n".join(p["text"] for p in parts if "text" in p), [p["url"] for p in parts if "url" in p], settings

    def _doc(self, doc_id: Any, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]


class SimpleModel(ChatModel):
    """The same for requests with a text and a function for the video, which `--force_simple` makes lmms-eval send."""

    is_simple = True

    def _asked(self, request: Any) -> tuple[str, list[Any], dict[str, Any]]:
        text, settings, visual, *where = request.args
        return text, visual(self._doc(*where)) or [], settings


def contents(messages: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The parts of messages. ValueError for sound and for parts of videos."""
    for part in (part for message in messages for part in message["content"]):
        times = [part.get(name) for name in ("start_time", "end_time")]
        if part["type"] not in ("text", "image", "video") or times != [None, None]:
            raise ValueError(f"{NAME} reads text, images and whole videos, not {part}")
        yield part
