"""Usage, perplexity and dead words of each list while a tokenizer trains, and the warning when one collapses."""

import logging
import os
import subprocess
import sys

import pytest
import tiny
import torch
from stages import ROOT, begin, command, config_of, log_lines, make_task

from sweettok.eval.tokenizers import UsageCounter
from sweettok.losses.config import QuantizerLossConfig
from sweettok.stages.codes import CodePredictor
from sweettok.stages.stage1 import Stage1Task
from sweettok.tokenizer.layout import TokenLayout
from sweettok.train import checkpoint
from sweettok.train.evaluate import evaluate
from sweettok.train.step import Clock, train_step
from sweettok.train.task import StepContext
from sweettok.train.usage import FALLEN, LEAST, RECOVERED, START, UsageWatch, UsageWindow

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

LISTS = ("adjective", "noun", "adverb", "verb")


def local_ids(layout: TokenLayout, seed: int, clips: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(max(1, segment.vocab_size // 2), (clips, segment.length), generator=generator)
        for segment in layout.segments
    ]


@pytest.mark.parametrize("layout", [tiny.tokenizer().layout, tiny.tokenizer(tiny.union_config()).layout])
def test_window_counts_as_the_evaluation_does(layout):
    window, counter = UsageWindow(layout), UsageCounter({s.name: s.vocab_size for s in layout.segments})
    for seed in range(3):
        ids = local_ids(layout, seed)
        window(*ids)
        counter.update({segment.name: part for segment, part in zip(layout.segments, ids, strict=True)})
    report = window.read()
    assert len(report) == 3 * len(layout.segments)
    for name, expected in counter.summary().items():
        assert 0 < expected["used"] < expected["words"]
        assert report[f"usage/{name}"].item() == pytest.approx(expected["used_fraction"])
        assert report[f"dead/{name}"].item() == expected["dead"]
        assert report[f"perplexity/{name}"].item() == pytest.approx(expected["perplexity"], rel=1e-5)
    empty = window.read()
    assert all(empty[f"usage/{segment.name}"] == 0 for segment in layout.segments)


def test_predictor_counts_what_it_chooses_in_training_only():
    model, video = tiny.tokenizer(tiny.tokenizer_config(graph_dropout=0.0)), tiny.clips(0, 1)
    predictor = CodePredictor(model, QuantizerLossConfig())
    predictor.train()(video)
    predictor.eval()(video)
    expected = torch.zeros(model.layout.vocab_size, dtype=torch.int64)
    for word in model.encode(video).ids.flatten().tolist():
        expected[word] += 1
    assert torch.equal(predictor.usage.counts, expected)
    assert not [name for name in predictor.state_dict() if "usage" in name]


def test_names_in_the_log(runs):
    """With log_every 1 each line tells of one step."""
    for line in log_lines(runs / "stage1"):
        for name in LISTS:
            usage, dead = line[f"train/usage/{name}"], line[f"train/dead/{name}"]
            size = dead / (1 - usage) if usage < 1 else None
            assert 0 < usage <= 1 and dead >= 0 and line[f"train/perplexity/{name}"] > 0.999
            assert size is None or size == pytest.approx(round(size), rel=1e-4)
    assert not [name for line in log_lines(runs / "stage1", "eval/") for name in line if "usage" in name]


def test_windows_are_whole(runs):
    """Logged at every third step, over three steps; what a resumed run has seen of a window is not reported as one."""
    run = config_of(runs, "stage1", "train.log_every=3", "train.max_steps=9", "train.micro_batch_size=2")
    task = make_task(Stage1Task, run)
    session, batches = begin(task, run)
    reports = [train_step(session, batches, Clock()).scalars for _ in range(4)]
    assert ["usage/verb" in report for report in reports] == [False, False, True, False]
    counts = task.trained["generator"].bare.usage.counts
    assert counts.sum() == 4 * task.model.layout.length  # of step 4: two micro-batches of two clips
    task.counted_steps = 0  # as after a resume at step 4
    reports = [train_step(session, batches, Clock()).scalars for _ in range(5)]
    assert ["usage/verb" in report for report in reports] == [False, False, False, False, True]


def test_processes_count_together(runs, tmp_path):
    environment = {
        **os.environ,
        "NUM_PROCESSES": "2",
        "OMP_NUM_THREADS": "1",
        "VIRTUAL_ENV": sys.prefix,
        "CUDA_VISIBLE_DEVICES": "",
    }
    settings = ["train.log_every=2", "train.max_steps=2", "train.sample_every=0", "train.eval_every=0"]
    launch = ["scripts/launch.sh", "-m", "sweettok", "train", str(runs / "stage1.yaml"), *settings]
    done = subprocess.run(
        ["bash", *launch, f"train.output_dir={tmp_path / 'two'}"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert command(["train", str(runs / "stage1.yaml"), *settings, f"train.output_dir={tmp_path / 'one'}"]) == 0
    one, two = (next(line for line in log_lines(tmp_path / name) if line["step"] == 2) for name in ("one", "two"))
    for kind in ("usage", "perplexity", "dead"):
        for name in LISTS:
            assert two[f"train/{kind}/{name}"] == pytest.approx(one[f"train/{kind}/{name}"], rel=1e-5)


# ----------------------------------------------------------------------------------------------------------- warning


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def window(name: str, perplexity: float, usage: float = 0.5) -> dict[str, float]:
    return {f"perplexity/{name}": perplexity, f"usage/{name}": usage, "code_loss": 1.0}


def test_a_collapse_is_told_at_each_halving(caplog):
    """Of the perplexity: a list is left with a few words although many are chosen now and then."""
    watch = UsageWatch(TokenLayout(), clips=6400)
    for perplexity in (80, 60, 80 * FALLEN + 0.1):
        watch.see(window("noun", perplexity))
    assert not warnings(caplog)
    watch.see(window("noun", 39))
    watch.see({"code_loss": 1.0})  # no window
    for perplexity in (41, 39, 39 * FALLEN + 0.1, 80 * RECOVERED - 0.1, 39):
        watch.see(window("noun", perplexity))
    (wording,) = warnings(caplog)
    assert wording.startswith(
        "the noun list collapses: perplexity 39.0 in the last window, at best 80.0 since the run's"
    )
    assert "; 50.0% of its words were chosen" in wording
    assert all(remedy in wording for remedy in ("optimizer.lr", "run_train_spatial.sh", "tokenizer.graph_dropout"))
    watch.see(window("noun", 19))
    watch.see(window("noun", 80 * RECOVERED + 0.1))
    watch.see(window("noun", 30))
    assert [text.partition(" in the")[0].rpartition(" ")[2] for text in warnings(caplog)] == ["39.0", "19.0", "30.0"]


def test_random_weights_are_no_measure(caplog):
    """What fresh weights choose, evenly, in the first windows."""
    watch = UsageWatch(TokenLayout(), clips=6400)
    watch.see(window("noun", 900), progress=START)
    watch.see(window("noun", 80), progress=2 * START)
    assert watch.best == {"noun": 80} and not warnings(caplog)
    watch.see(window("noun", 39))
    assert len(warnings(caplog)) == 1
    watch.see(window("verb", 900, usage=LEAST / 2), progress=START / 2)
    assert len(warnings(caplog)) == 2, "the list's size is a measure from the first window on"


def test_an_unused_list_is_told_once(caplog):
    watch = UsageWatch(TokenLayout(), clips=6400)
    for usage in (LEAST + 0.001, LEAST - 0.03, LEAST - 0.02):
        watch.see(window("verb", 100, usage))
    (wording,) = warnings(caplog)
    assert "the verb list collapses: perplexity 100.0" in wording and "2.0% of its words" in wording
    watch.see(window("verb", 100, LEAST + 0.001))
    watch.see(window("verb", 100, LEAST - 0.03))
    assert len(warnings(caplog)) == 2


def test_small_windows_cannot_use_more_words_than_they_have_ids(caplog):
    watch = UsageWatch(TokenLayout(), clips=1)  # 256 nouns of 5403
    watch.see(window("noun", 10, 0.01))
    assert not warnings(caplog)
    watch.see(window("noun", 10, 0.002))
    assert "the noun list" in warnings(caplog)[0]


def test_a_collapsed_model_warns_and_a_resumed_run_remembers(runs, tmp_path, caplog):
    run = config_of(runs, "stage1", f"train.output_dir={tmp_path}")
    task = make_task(Stage1Task, run)
    session, _ = begin(task, run)
    task.progress = 0.5
    task.derive(window("adverb", 20.0, 1.0))
    assert not warnings(caplog)
    checkpoint.save(session.state, tmp_path)
    later = make_task(Stage1Task, run)
    again, batches = begin(later, run)
    checkpoint.load(again.state, tmp_path / "checkpoint-0")
    assert later.watch.best == {"adverb": 20.0}
    with torch.no_grad():  # every latent in one direction
        later.model.encoder.temporal_out[-1].weight.zero_()
        later.model.encoder.temporal_out[-1].bias.fill_(1.0)
    next(later.losses({"video": next(batches)["video"]}, StepContext(0, 42, 0, 4, 4)))
    later.derive({name: value.item() for name, value in later.after_step(StepContext(0, 42, 0, 4, 4)).items()})
    assert any("the adverb list collapses" in wording for wording in warnings(caplog))


def test_validation_neither_counts_nor_warns(runs, caplog):
    run = config_of(runs, "stage1")
    task = make_task(Stage1Task, run)
    session, _ = begin(task, run)
    assert "eval/code_loss" in evaluate(session)
    assert not task.trained["generator"].bare.usage.counts.any() and not task.watch.best and not warnings(caplog)


# ----------------------------------------------------------------------------------------------------------- dropout


def test_dropout_redraws_the_codes_in_training_alone():
    """The release's codebook dropout: what is near changes from step to step, and never in evaluation."""
    video = tiny.clips(0, 1)

    def chosen(model) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([ids for lookup in model.predict(video).lookups for ids in lookup.ids], dim=1)

    for dropout in (0.0, 0.5):
        model = tiny.tokenizer(tiny.tokenizer_config(graph_dropout=dropout)).train()
        torch.manual_seed(0)
        assert torch.equal(chosen(model), chosen(model)) == (dropout == 0)
        assert torch.equal(chosen(model.eval()), chosen(model))
