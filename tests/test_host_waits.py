"""Training passes of all models, forward and backward, without waiting for the device."""

import pytest
import tiny
import torch
from host_waits import HostWaits
from test_generator import make
from test_sequence import SMALL, some_ids

from sweettok.layers.checkpointing import set_gradient_checkpointing


def waits(function):
    with HostWaits() as counter:
        function()
    return counter.waits


def tokenizer_pass(**changes):
    model, video = tiny.tokenizer(tiny.tokenizer_config(**changes)).train(), tiny.clips(0, 1)
    codes = torch.randint(32, (2, 3, 4, 4))
    return model, lambda: tiny.stage1_loss(model, video, codes).backward()


def pixels_pass():
    """As in stage 2: encoder and codebooks frozen, in evaluation mode."""
    model, video = tiny.tokenizer().train(), tiny.clips(0, 1)
    frozen = (model.encoder, model.spatial_quantizer, model.temporal_quantizer)
    for part in frozen:
        part.requires_grad_(False).eval()
    return model, lambda: model.to_pixels(model.predict(video).logits).square().mean().backward()


def proxy_pass():
    """With the update of the code table."""
    model, video = tiny.proxy().train(), tiny.clips(0, 1)
    generator = torch.Generator().manual_seed(0)

    def step():
        out = model(video)
        (out.video.square().mean() + out.commitment).backward()
        model.codebook.update([out.features.flatten(0, -2)], out.codes.flatten(), 0.9, 0.5, generator)
        model.codebook.perplexity()

    return model, step


def generator_pass(condition, **changes):
    model, ids = make(**changes).train(), some_ids(SMALL)

    def step():
        sequence = model.sequence
        prompt = sequence.prompt(condition, batch=len(ids), check_values=False)
        model(prompt, sequence.target(ids)).square().mean().backward()

    return model, step


PASSES = {
    "stage 1": tokenizer_pass,
    "stage 1, union": lambda: tokenizer_pass(lookup="union"),
    "stage 2": pixels_pass,
    "proxy": proxy_pass,
    "generator": lambda: generator_pass(torch.tensor([0, -1])),
    "generator, rotary, unconditional": lambda: generator_pass(None, num_classes=0, positions="rotary"),
    "generator, given frames": lambda: generator_pass(some_ids(SMALL), num_classes=0, given_frames=5),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", PASSES)
def test_no_training_pass_waits(name, recompute):
    model, step = PASSES[name]()
    set_gradient_checkpointing(model, recompute)
    assert waits(step) == []


def wait_of(function):
    with HostWaits() as counter:
        function(torch.arange(4.0))
    return [wait.partition(" in ")[0] for wait in counter.waits]


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense.default"),
        (lambda x: bool((x > 5).any()), "aten._local_scalar_dense.default"),
        (lambda x: x.nonzero(), "aten.nonzero.default"),
        (lambda x: x[x > 2], "aten.index.Tensor"),
        (lambda x: x.masked_select(x > 2), "aten.masked_select.default"),
        (lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.long)), "aten.repeat_interleave.Tensor"),
        (lambda x: x.to("meta"), "aten._to_copy.default"),
        (lambda x: torch.empty(4, device="meta").copy_(x), "aten.copy_.default"),
        (lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]), "aten.lift_fresh.default"),
        (lambda x: x.unique(), "aten._unique2.default"),
    ],
)
def test_waits_are_counted(function, operation):
    assert operation in wait_of(function)
    assert wait_of(lambda x: (x * 2).to("meta", non_blocking=True)) == []
