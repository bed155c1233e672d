"""TV-Align: triplets, judges, reports that are resumed and compared."""

import base64
import io
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sweettok.cli.main import main
from sweettok.data.questions import SKILLS, solve
from sweettok.data.scenes import HELD_OUT
from sweettok.data.writer import write_video
from sweettok.eval import tvalign
from sweettok.eval.judges import EndpointJudge, LocalJudge, Rules, data_url, prompt
from sweettok.words.endpoint import Endpoint
from sweettok.words.models import Answer

NUM = 14


@pytest.fixture(scope="module")
def drawn():
    return tvalign.triplets(NUM, seed=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory, drawn):
    """A file of triplets, a folder of their true videos, and one whose videos are of the triplet before."""
    folder = tmp_path_factory.mktemp("tvalign")
    tvalign.write_triplets(folder / "triplets.jsonl", NUM, seed=2)
    for number, (row, scene) in enumerate(drawn):
        for name, shown in (("true", scene), ("false", drawn[number - 1][1])):
            write_video(folder / name / f"{row['id']}.mp4", shown.draw(25, 64), 24, full_chroma=True)
    return folder


class Model:
    """A judge that always gives the first option, and counts what it is asked."""

    concurrency = 1

    def __init__(self):
        self.identity, self.shapes = {"backend": "first"}, []

    def answer(self, video, question, options):
        self.shapes.append(None if video is None else tuple(video.shape))
        return Answer(options[0])


def test_triplets(drawn, tmp_path):
    rows = [row for row, _ in drawn]
    assert Counter(row["skill"] for row in rows) == dict.fromkeys(SKILLS, NUM // 7)
    assert [row for row, _ in tvalign.triplets(5, seed=2)] == rows[:5]
    assert all(row["answer"] == solve(row["question"], scene) for row, scene in drawn)
    assert all((scene.things[0].color, scene.things[0].shape) in HELD_OUT for _, scene in drawn)
    assert sorted(Counter(SKILLS[i % 7] for i in range(tvalign.NUM)).values()) == [142, *[143] * 6]
    tvalign.write_triplets(tmp_path / "t.jsonl", NUM, seed=2)
    assert tvalign.read_triplets(tmp_path / "t.jsonl") == [json.loads(json.dumps(row)) for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "seven"}, "options must differ and contain the answer 'seven'"),
        ({"options": ["a", "a"], "answer": "a"}, "options must differ"),
        ({"id": "../x"}, "its id '../x' is not the name of one video"),
    ],
)
def test_wrong_triplets(tmp_path, drawn, change, message):
    (tmp_path / "t.jsonl").write_text(json.dumps({**drawn[0][0], **change}) + "\n")
    with pytest.raises(ValueError, match=f"line 1 is not a triplet: .*{message}"):
        tvalign.read_triplets(tmp_path / "t.jsonl")


def test_rules_by_command(files, capsys, tmp_path):
    """True videos are answered right, others are not; both reports are compared by a paired test."""
    for name in ("true", "false"):
        arguments = ["--triplets", str(files / "triplets.jsonl"), "--videos", str(files / name), "--ceiling", "7"]
        assert main(["eval", "tvalign", *arguments, "--out", str(tmp_path / f"{name}.json")]) == 0
    assert "TV-Align (" in capsys.readouterr().out
    true, false = (tvalign.read_report(tmp_path / f"{name}.json")["results"] for name in ("true", "false"))
    assert true["accuracy"]["mean"] == true["ceiling"]["mean"] == 1 and true["blind"] is None
    assert false["accuracy"]["mean"] < 0.5 and 0.2 < true["chance"] < 0.35
    assert main(["eval", "compare", str(tmp_path / "false.json"), str(tmp_path / "true.json")]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    wrong = round(NUM * (1 - false["accuracy"]["mean"]))
    assert (
        line[0] == "all"
        and line[6:8] == ["0", str(wrong)]
        and float(line[8]) == pytest.approx(2 * 0.5**wrong, abs=1e-4)
    )
    other = json.loads((tmp_path / "true.json").read_text())
    other["protocol"]["frames"] = 3
    other["protocol_hash"] = tvalign.protocol_hash(other["protocol"])
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert main(["eval", "compare", str(tmp_path / "true.json"), str(tmp_path / "other.json")]) == 2
    assert "the protocols of these reports differ in frames" in capsys.readouterr().err


def test_rules_that_fail_on_drawn_clips_stop(files, tmp_path, monkeypatch):
    monkeypatch.setattr(tvalign, "_drawn", lambda scene, frames, size: torch.zeros(3, 9, 32, 32, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="rules answer 0.0% of the questions about drawn clips, expected 99%"):
        tvalign.evaluate(files / "triplets.jsonl", files / "true", Rules(), tmp_path / "a.jsonl", ceiling=7)


def test_answers_are_kept_and_frames_fixed(files, tmp_path):
    model = Model()
    options = {"answers": tmp_path / "a.jsonl", "frames": 5, "size": 48, "ceiling": 7}
    report = tvalign.evaluate(files / "triplets.jsonl", files / "true", model, **options)
    assert Counter(model.shapes) == {(3, 5, 48, 48): NUM + 7, None: NUM}
    again = Model()
    assert tvalign.evaluate(files / "triplets.jsonl", files / "true", again, **options) == report and not again.shapes
    assert report["results"]["blind"] == report["results"]["accuracy"]
    with pytest.raises(FileNotFoundError, match=f"lacks {NUM} of {NUM} videos"):
        tvalign.evaluate(files / "triplets.jsonl", tmp_path, model, **options)


def test_endpoint_sees_our_frames(monkeypatch):
    sent = []
    endpoint = Endpoint("http://localhost:1/v1", "judge")
    reply = SimpleNamespace(is_success=True, json=lambda: {"choices": [{"message": {"content": "Left."}}]})
    monkeypatch.setattr(endpoint._client, "post", lambda url, json: sent.append(json) or reply)
    video = torch.randint(0, 256, (3, 4, 32, 48), dtype=torch.uint8)
    judge = EndpointJudge(endpoint)
    assert judge.answer(video, "Which way?", ("right", "left")).choice == "left"
    *images, text = sent[0]["messages"][0]["content"]
    assert (
        len(images) == 4 and text["text"] == prompt(4, "Which way?", ("right", "left")) and sent[0]["temperature"] == 0
    )
    content = base64.b64decode(images[0]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (48, 32) and images[0]["image_url"]["url"] == data_url(video[:, 0])
    judge.answer(None, "Which way?", ("right", "left"))
    assert [part["type"] for part in sent[1]["messages"][0]["content"]] == ["text"]


def test_local_model(tmp_path):
    """A tiny random Qwen2.5-VL, read from a folder: greedy, so the same answer twice."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    marks = ["<unk>", "<eos>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "left", "right"]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({m: i for i, m in enumerate(marks)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<eos>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=marks[2:6], **special
    )
    template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    )
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 1024}
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**sizes),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(**sizes),
        chat_template=template,
    )
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "vocab_size": len(marks), "bos_token_id": 1, "eos_token_id": 1}
    text |= {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "max_position_embeddings": 512}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    vision |= {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [0]}
    tokens = {"image_token_id": 2, "video_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5}
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    judge, video = LocalJudge(tmp_path), torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    answer = judge.answer(video, "Which way?", ("left", "right"))
    assert answer == judge.answer(video, "Which way?", ("left", "right")) and answer.text is not None
    blind = judge.answer(None, "Which way?", ("left", "right"))
    assert answer.prompt_tokens > blind.prompt_tokens
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        LocalJudge(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--judge", "endpoint"), "--judge endpoint needs --model"),
        (("--judge", "rules", "--model", "x"), "--model cannot be used with --judge rules"),
        (("--frames", "3"), "--judge rules looks at all pixels of all frames"),
    ],
)
def test_wrong_options(files, tmp_path, capsys, options, message):
    arguments = ["--triplets", str(files / "triplets.jsonl"), "--videos", str(files / "true")]
    assert main(["eval", "tvalign", *arguments, "--out", str(tmp_path / "r.json"), *options]) == 2
    assert message in capsys.readouterr().err


def test_skills_have_their_own_accuracy(files, tmp_path):
    report = tvalign.evaluate(files / "triplets.jsonl", files / "true", Model(), tmp_path / "a.jsonl", 2, 32, 0)
    results = report["results"]
    assert list(results["skills"]) == list(SKILLS) and results["ceiling"] is None
    means = [value["mean"] for value in results["skills"].values()]
    assert np.isclose(np.mean(means), results["accuracy"]["mean"])
