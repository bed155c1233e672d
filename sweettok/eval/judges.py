"""Judges that answer a question about a video by choosing one of its options: rules, or a vision-language model."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sweettok.data.questions import solve
from sweettok.eval.scene_tracker import recognise
from sweettok.words.endpoint import Endpoint
from sweettok.words.models import MAX_NEW_TOKENS, Answer, parse_choice

SEEN = "These {frames} images are frames of one video, evenly spaced and in order."
BLIND = "Guess the answer to a question about a video that you cannot see."
ASKED = "{question}\nAnswer with one of these options, in exactly these words: {options}."
JPEG_QUALITY = 95


class Judge(Protocol):
    """Interface of a judge. Equal questions must get equal answers: no sampling."""

    identity: dict[str, Any]  # key of cached answers; different for judges that may answer differently
    concurrency: int  # questions in parallel

    def answer(self, video: Tensor | None, question: str, options: Sequence[str]) -> Answer:
        """The answer about the frames of a clip, uint8 (3, T, H, W), or a guess without a video."""


@dataclass(frozen=True)
class Rules:
    """Answers questions about scenes (`sweettok.data.questions`) by the scene tracker; without a video, never."""

    concurrency = 1
    identity = {"backend": "rules", "format": 1}

    def answer(self, video: Tensor | None, question: str, options: Sequence[str]) -> Answer:
        found = None if video is None else solve(question, recognise(video))
        return Answer(found if found in options else None)


class EndpointJudge:
    """A vision-language model behind an OpenAI-compatible endpoint. It receives the frames as JPEG images in data URLs,
    so that the server chooses and resizes none."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.concurrency = endpoint, endpoint.concurrency
        self.identity = {**endpoint.identity, "prompt": [SEEN, BLIND, ASKED], "jpeg": JPEG_QUALITY}

    def answer(self, video: Tensor | None, question: str, options: Sequence[str]) -> Answer:
        images = [] if video is None else [data_url(frame) for frame in video.unbind(1)]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
        text = prompt(None if video is None else video.shape[1], question, options)
        return self.endpoint.answer([*parts, {"type": "text", "text": text}], options)


class LocalJudge:
    """A vision-language model and its processor in a folder of transformers' `save_pretrained`; answers greedily.

    Only safetensors weights are read; nothing is downloaded, and no code of the folder is run.

    Args:
        precision: "no" for float32, or "bf16".

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no model in the folder.
    """

    concurrency = 1

    def __init__(self, folder: str | Path, precision: str = "no", device: Any = "cpu"):
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ImportError("a local judge needs transformers: pip install 'sweettok[llm]'") from error
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json: give the folder of a vision-language model")
        local = {"local_files_only": True, "trust_remote_code": False}
        self.processor = AutoProcessor.from_pretrained(folder, **local)
        model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, **local)
        self.model = model.to(device, torch.bfloat16 if precision == "bf16" else torch.float32).eval()
        self.device = device
        files = sorted((path.name, path.stat().st_size) for path in folder.glob("*.*"))
        self.identity = {"backend": "local", "model": folder.resolve().name, "files": files, "precision": precision}
        self.identity |= {"prompt": [SEEN, BLIND, ASKED]}

    @torch.no_grad()
    def answer(self, video: Tensor | None, question: str, options: Sequence[str]) -> Answer:
        frames = [] if video is None else [_picture(frame) for frame in video.unbind(1)]
        text = {"type": "text", "text": prompt(len(frames) or None, question, options)}
        content = [*({"type": "image", "image": frame} for frame in frames), text]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            **{"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"},
        ).to(self.device)
        output = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS)
        asked = inputs["input_ids"].shape[1]
        reply = self.processor.decode(output[0, asked:], skip_special_tokens=True)
        return Answer(parse_choice(reply, options), reply, None, asked, output.shape[1] - asked)


@dataclass(frozen=True)
class Watcher:
    """A judge that is asked about clips by their keys, as `words.answers.ask` does; no key is for a guess."""

    judge: Judge
    clips: Mapping[str, Any]  # from a key to a function that returns the frames

    @property
    def identity(self) -> dict[str, Any]:
        return self.judge.identity

    @property
    def concurrency(self) -> int:
        return self.judge.concurrency

    def answer(self, key: str, question: str, options: Sequence[str]) -> Answer:
        return self.judge.answer(self.clips[key]() if key else None, question, options)


def prompt(frames: int | None, question: str, options: Sequence[str]) -> str:
    """The text for a vision-language model; `frames`: number of images before it, None for a guess."""
    start = BLIND if frames is None else SEEN.format(frames=frames)
    return f"{start}\n{ASKED.format(question=question, options=', '.join(options))}"


def data_url(frame: Tensor) -> str:
    """uint8 (3, H, W) -> a JPEG image as URL."""
    file = io.BytesIO()
    _picture(frame).save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _picture(frame: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(frame.permute(1, 2, 0).contiguous().cpu().numpy())
