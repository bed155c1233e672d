"""The caption loss of stage 1: words of captions as targets, and its effect on the chosen words."""

import json

import pytest
from stages import begin, config_of, make_task

from sweettok.stages.captions import CaptionWords
from sweettok.stages.stage1 import Stage1Task
from sweettok.tokenizer.model import SweetTok
from sweettok.train.step import Clock, train_step

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def tokenizer(runs):
    return SweetTok.from_pretrained(runs / "stage1" / "final")


def write(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return str(path)


def test_targets_are_the_words_of_the_caption_in_the_lists_of_their_part_of_speech(tokenizer, tmp_path):
    (adjective, *_), (noun, *_), (adverb, *_), (verb, *_) = tokenizer.vocabulary
    words = [[adjective.upper(), "adjective"], [verb, "verb"], [noun, "verb"], ["unheard-of", "noun"]]
    path = write(tmp_path / "c.jsonl", {"key": "a", "words": words}, {"key": "of no clip", "words": [[noun, "noun"]]})
    captions = CaptionWords(path, tokenizer, ["a", "b"])
    targets = captions.targets(["b", "a"])
    assert captions.missing == 1 and targets.shape == (2, tokenizer.vocab_size) and targets[0].sum() == 0
    words = [word for words in tokenizer.vocabulary for word in words]
    assert [words[number] for number in targets[1].nonzero().flatten()] == [adjective, verb]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"key": "z", "words": [["red", "adjective"]]}, "no training clip has a caption"),
        ({"key": "a", "text": "a red ball"}, 'not a file of tagged captions|has "words"'),
        ({"words": [["red", "adjective"]]}, "line 1: not a tagged caption with a key"),
        ({"key": "a", "words": [["red", "colour"]]}, "line 1: not a tagged caption"),
    ],
)
def test_wrong_captions_are_refused(tokenizer, tmp_path, record, message):
    with pytest.raises(ValueError, match=message):
        CaptionWords(write(tmp_path / "c.jsonl", record), tokenizer, ["a"])


def test_captions_and_their_weight_need_each_other(runs):
    with pytest.raises(ValueError, match="need each other"):
        make_task(Stage1Task, config_of(runs, "stage1", "loss.caption_weight=1"))


def test_training_chooses_the_words_of_captions_more_often(runs, tmp_path):
    captions = f"captions={runs / 'clips' / 'captions.jsonl'}"
    settings = ("loss.caption_weight=1", "optimizer.lr=0.01", "optimizer.warmup_steps=0", "train.max_steps=12")
    run = config_of(runs, "stage1", captions, *settings, f"train.output_dir={tmp_path}")
    task = make_task(Stage1Task, run)
    session, batches = begin(task, run)
    seen = [train_step(session, batches, Clock()).scalars["caption_loss"][0].item() for _ in range(12)]
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])
