"""The generator's stage: what is scored, what is dropped, what it carries along."""

import math

import pytest
import torch
from accelerate.state import AcceleratorState
from stages import begin, config_of, first_batch, make_task, tokenize

from sweettok.data.manifest import StoredLayout
from sweettok.data.tokens import TokenDataset
from sweettok.generator.model import Generator
from sweettok.stages.generator import GeneratorTask
from sweettok.tokenizer.model import SweetTok
from sweettok.train.step import Clock, train_step
from sweettok.train.task import StepContext

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def generator_task(runs, *overrides):
    return make_task(GeneratorTask, config_of(runs, "generator", *overrides))


def test_generator_s_metrics_are_those_of_the_words(runs):
    """Against the logits themselves: separators do not count, each segment does by its length."""
    task = generator_task(runs)
    task.model.eval()
    batch = first_batch(task)
    sequence, metrics = task.model.sequence, task.validate(batch)
    target = sequence.target(batch["ids"])
    with torch.no_grad():
        logits = task.model(sequence.prompt(batch["label"]), target)
    words = torch.cat(
        [
            torch.arange(start, start + s.length)
            for start, s in zip(sequence.segment_starts, sequence.layout.segments, strict=True)
        ]
    )
    entropy = torch.nn.functional.cross_entropy(logits[:, words].movedim(-1, 1), target[:, words], reduction="none")
    torch.testing.assert_close(metrics["cross_entropy"], entropy.mean(1))
    torch.testing.assert_close(metrics["accuracy"], (logits.argmax(-1) == target)[:, words].float().mean(1))
    verbs = sequence.layout.segment("verb").places
    torch.testing.assert_close(metrics["cross_entropy/verb"], entropy[:, verbs].mean(1))
    derived = task.derive({name: value.mean().item() for name, value in metrics.items()})
    assert derived["perplexity"] == pytest.approx(math.exp(entropy.mean()), rel=1e-5)
    assert derived["perplexity/verb"] == pytest.approx(math.exp(entropy[:, verbs].mean()), rel=1e-5)
    lists = [segment.vocab_size for segment in sequence.layout.segments for _ in range(segment.length)]
    assert derived["perplexity_uniform"] == pytest.approx(math.prod(size ** (1 / len(lists)) for size in lists))


def test_generator_s_loss_is_the_mean_over_all_places(runs):
    task = generator_task(runs, "loss.label_smoothing=0.2", "generator.class_dropout=0")
    batch = first_batch(task)
    sequence = task.model.sequence
    target = sequence.target(batch["ids"])
    logits = task.model(sequence.prompt(batch["label"]), target)
    expected = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), target, label_smoothing=0.2)
    name, loss, report = next(task.losses(batch, StepContext(0, 0, 0, 4, 4)))
    torch.testing.assert_close(loss, expected)
    assert (name, report["cross_entropy"].requires_grad) == ("generator", False)


def test_classes_are_dropped_clip_by_clip(runs):
    """By draws that belong to the clip, for any share of the batch; never in validation."""
    task = generator_task(runs)
    sequence, prompts = task.model.sequence, []
    hooked = task.model.register_forward_pre_hook(lambda _, inputs: prompts.append(inputs[0]))
    batch = first_batch(task)

    def second_ids(start, size, step):
        share = {name: value[start : start + size] for name, value in batch.items()}
        next(task.losses(share, StepContext(step, 42, start, size, 4)))
        return prompts.pop()[:, 1]

    whole = torch.cat([second_ids(0, 4, step) for step in range(20)])
    halves = torch.cat([second_ids(start, 2, step) for step in range(20) for start in (0, 2)])
    assert whole.equal(halves)
    dropped = whole == sequence.null_id
    assert 0.25 < dropped.float().mean() < 0.75
    assert 0 < dropped.view(20, 4).float().mean(1).unique()[1] < 1  # some of a batch, not all of it
    kept = (batch["label"] + sequence.class_start).repeat(20)
    assert whole[~dropped].equal(kept[~dropped])
    task.validate(batch)
    assert prompts.pop()[:, 1].equal(batch["label"] + sequence.class_start)
    hooked.remove()


def test_accumulated_gradients_are_those_of_the_big_batch(runs, tmp_path):
    moments = []
    for micro in (4, 1):
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = f"train.micro_batch_size={micro}", f"train.output_dir={tmp_path / str(micro)}"
        run = config_of(runs, "generator", *settings)
        task = make_task(GeneratorTask, run)
        session, batches = begin(task, run)
        report = train_step(session, batches, Clock())
        assert len(report.scalars["loss/generator"]) == 4 // micro
        optimizer = session.state.task.trained["generator"].optimizer
        moments.append([state["exp_avg"] for state in optimizer.state.values()])
    for mine, other in zip(*moments, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


def test_generator_learns_a_clip_by_heart(runs, tmp_path):
    run = config_of(
        runs,
        "generator",
        "generator.dim=64",
        "optimizer.lr=3e-3",
        "loss.label_smoothing=0",
        "generator.class_dropout=0",
        f"train.output_dir={tmp_path}",
    )
    task = make_task(GeneratorTask, run)
    batch = first_batch(task, 1)
    optimizer = task.trained["generator"].optimizer
    for step in range(80):
        _, loss, report = next(task.losses(batch, StepContext(step, 0, 0, 1, 1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert report["accuracy"] > 0.99
    task.model.eval()
    assert task.model.sample(batch["label"], temperature=0.0).equal(batch["ids"])
    for dtype in (torch.bfloat16, torch.float16):  # what stands out stands out in half precision
        with torch.autocast("cpu", dtype):
            assert task.model.sample(batch["label"], temperature=0.0).equal(batch["ids"])


def test_frame_prediction_is_trained(runs, tmp_path):
    """Three given frames of five, encoded alone; what is given is read and not scored."""
    tokenize(runs, tmp_path / "tokens", "--given-frames", "3")
    run = config_of(
        runs,
        "generator",
        f"data.train={tmp_path / 'tokens'}",
        f"data.validation={tmp_path / 'tokens'}",
        "generator.given_frames=3",
        f"train.output_dir={tmp_path / 'out'}",
    )
    task = make_task(GeneratorTask, run)
    assert task.model.sequence.given_clip
    assert task.model.config.num_classes == 0
    batch = first_batch(task, 2)
    losses = task.trained["generator"].module(task.prompt(batch), task.model.sequence.target(batch["ids"]))
    assert losses.plain.shape == (2, task.model.sequence.target_length)
    assert task.sample(batch).shape == (2, 3, 5, 32, 32)


def test_unconditional_generator(runs):
    task = generator_task(runs, "generator.num_classes=0")
    batch = first_batch(task)
    assert next(task.losses(batch, StepContext(0, 0, 0, 4, 4)))[1].isfinite()
    assert task.sample(batch).shape == (4, 3, 5, 32, 32)


def test_generator_carries_what_its_tokens_mean(runs):
    model, tokens = Generator.from_pretrained(runs / "generator" / "final"), TokenDataset(runs / "tokens")
    tokenizer = SweetTok.from_pretrained(runs / "stage2" / "final")
    assert model.config.layout == tokenizer.layout and tokens.layout == StoredLayout.of(tokenizer.layout)
    assert model.config.tokenizer_hash == tokens.tokenizer_hash == tokenizer.ids_hash()
    assert model.config.num_classes == tokens.num_classes == 8


def test_weight_decay_of_the_generator(runs):
    """By type: matrices. By the release's rule: embeddings and positions too."""
    for rule, extra in (("by_type", 0), ("release", 2)):
        task = generator_task(runs, f"optimizer.decay_rule={rule}")
        decayed, spared = (group["params"] for group in task.trained["generator"].optimizer.param_groups)
        assert len(decayed) == 4 * 2 + 1 + extra  # four matrices a layer, and the head
        assert len(decayed) + len(spared) == len(list(task.model.parameters()))
