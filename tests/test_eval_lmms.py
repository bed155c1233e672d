"""The model for lmms-eval, with requests as lmms-eval 0.7.3 makes them; lmms-eval itself is not needed."""

import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_vtok
import tiny_language
import torch

from sweettok import VideoLanguageModel
from sweettok.data.writer import write_video
from sweettok.eval import lmms
from sweettok.vtok.sampling import option_scores

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "what moves?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lmms")
    test_vtok.make(tokens_per_second=6).save_pretrained(path / "tok")
    torch.manual_seed(0)
    texts = (*tiny_language.TEXTS, QUESTION)
    model = VideoLanguageModel.from_scratch(tiny_language.config(visual_dim=16), texts)
    model.backbone.embeddings.weight.data[:4] = 0  # so that no special token, such as the end, is the likeliest
    model.save_pretrained(path / "model")
    write_video(path / "clip.mp4", [test_vtok.clips(1, 24)[0]], 12)
    return path


@pytest.fixture(scope="module")
def docs(folder):
    return {"task": {"test": [{"video": str(folder / "clip.mp4"), "question": QUESTION, "answer": " ball"}]}}


def opened(cls, folder, docs, **options):
    model = cls(str(folder / "model"), tokenizer=str(folder / "tok"), device="cpu", **options)
    model.task_dict = docs
    return model


def messages(doc):
    content = [{"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


def visual(doc):
    return [doc["video"]]


def request(*arguments):
    """`args` of an Instance of lmms-eval."""
    return SimpleNamespace(args=(*arguments, 0, "task", "test"))


def test_the_entry_point_gives_the_classes(monkeypatch):
    """With the registry of lmms-eval, of which the manifest alone is used."""

    @dataclass
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None
        chat_class_path: str | None = None

    monkeypatch.setitem(sys.modules, "lmms_eval", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lmms_eval.models", SimpleNamespace())
    registry = SimpleNamespace(ModelManifest=ModelManifest)
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    project = (ROOT / "pyproject.toml").read_text()
    group = re.search(r'\[project.entry-points."lmms_eval.models"\]\n\w+ = "(.+):(.+)"', project)
    found = getattr(import_module(group[1]), group[2])()
    for path, simple in ((found.chat_class_path, False), (found.simple_class_path, True)):
        module, name = path.rsplit(".", 1)
        assert getattr(import_module(module), name).is_simple is simple


def test_answers_are_those_of_the_model(folder, docs):
    chat, simple = (opened(cls, folder, docs) for cls in (lmms.ChatModel, lmms.SimpleModel))
    model, tokens = chat.model, chat.model.source(folder / "clip.mp4")
    text = model.answer(tokens, QUESTION, max_new_tokens=5)
    assert len(text) > 1
    settings = {"max_new_tokens": 5, "until": [text[1], ""], "temperature": 0}
    assert chat.generate_until([request("", messages, settings)]) == [text.split(text[1])[0]]
    assert simple.generate_until([request(QUESTION, {"max_new_tokens": 5}, visual)]) == [text]
    asked = [request(QUESTION, " ball", visual), request(QUESTION, lambda doc: doc["answer"], visual)]
    asked += [request(QUESTION, text, visual), SimpleNamespace(args=(QUESTION, "ball"))]
    scores = simple.loglikelihood(asked)
    expected = option_scores(model, tokens, [QUESTION], ["ball"]).item()
    assert scores[0][0] == scores[1][0] == pytest.approx(expected, abs=1e-5) and not scores[0][1]
    assert scores[3][0] != scores[0][0]  # without the video
    assert opened(lmms.ChatModel, folder, docs, max_frames=5).tokens([folder / "clip.mp4"]).values.shape[1] == 16 + 2


def test_images(folder, docs):
    from PIL import Image

    pixels = test_vtok.clips(1, 1)[0, :, 0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / "image.png")
    chat = opened(lmms.ChatModel, folder, docs, max_frames=5)
    tokens = chat.tokens([Image.open(folder / "image.png")])
    torch.testing.assert_close(tokens.values, chat.tokens([f"file://{folder}/image.png"]).values)
    assert tokens.values.shape[1] == 16 and chat.tokens([]) is None


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.generate_until([request("", messages, {"do_sample": True})]), "answers greedily"),
        (lambda m: m.generate_until([request("", messages, {"temperature": 0.7})]), "answers greedily"),
        (lambda m: m.tokens(["a.mp4", "b.mp4"]), "reads one video or image in a request; this one has 2"),
        (lambda m: list(lmms.contents([{"content": [{"type": "audio", "url": "a"}]}])), "not {'type': 'audio'"),
        (lambda m: list(lmms.contents([{"content": [{"type": "video", "url": "a", "end_time": 2}]}])), "whole videos"),
        (lambda m: m.generate_until_multi_round([]), "answers single questions"),
    ],
)
def test_requests_that_do_not_fit(folder, docs, ask, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        ask(opened(lmms.ChatModel, folder, docs))


def test_a_model_without_tokenizer(folder):
    with pytest.raises(ValueError, match="has no tokenizer of videos: give tokenizer="):
        lmms.ChatModel(str(folder / "model"), device="cpu")
