"""Every model forward is one graph for torch.compile, and exports with a dynamic batch."""

import pytest
import tiny
import torch
from test_generator import make
from test_sequence import SMALL, some_ids
from torch import nn
from torch.utils import _pytree

from sweettok.generator.transformer import Cache

PROXY = tiny.proxy_config(encoder_spatial="w", encoder_temporal="t", decoder_temporal="t", decoder_spatial="t")
SHALLOW = {"encoder_spatial": "t", "encoder_temporal": "t", "decoder_spatial": "t", "decoder_temporal": "t"}


class Call(nn.Module):
    """One function of a model as a module."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs):
        return self.function(self.model, *inputs)


def tokenizer(**changes):
    return tiny.tokenizer(tiny.tokenizer_config(PROXY, **SHALLOW, **changes))


def generator(**changes):
    return make(num_layers=1, **changes)


def clip(count):
    return (tiny.clips(*range(count)),)


def sequences(count):
    sequence = generator().sequence
    return sequence.prompt(torch.arange(count) % 3), sequence.target(some_ids(SMALL, count))


def forward(model, *inputs):
    return model(*inputs)


def image(model, video):
    prediction = model.predict(video[:, :, :1])
    return prediction.logits, [lookup.ids for lookup in prediction.lookups]


ROTARY = {"positions": "rotary", "qk_norm": True}
COMPILED = {
    "tokenizer": (tokenizer, forward, clip),
    "tokenizer, image": (lambda: tokenizer(pixel_path="none"), image, clip),
    "first frame": (lambda: tokenizer(decoder_order="first_frame"), forward, clip),
    "proxy": (lambda: tiny.proxy(PROXY), forward, clip),
    "generator": (lambda: generator(**ROTARY), forward, sequences),
}


def same(ours, expected):
    pairs = zip(_pytree.tree_leaves(ours), _pytree.tree_leaves(expected), strict=True)
    for one, other in pairs:
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", COMPILED)
def test_a_training_forward_is_one_graph(case):
    make_model, function, inputs = COMPILED[case]
    model = make_model().train()
    torch._dynamo.reset()
    results = []
    for forward in (torch.compile(Call(model, function), fullgraph=True, backend="eager"), Call(model, function)):
        torch.manual_seed(0)  # of dropout
        results.append(forward(*inputs(2)))
    same(*results)
    assert _pytree.tree_leaves(results[0])[0].requires_grad


@torch.no_grad()
def test_export_with_a_dynamic_batch():
    """Of the generator; those of tokenizers are in test_export.py."""
    model, batch = generator(), torch.export.Dim("batch", min=1, max=1024)
    shapes = (tuple({0: batch} for _ in sequences(2)),)
    program = torch.export.export(Call(model, forward), sequences(2), dynamic_shapes=shapes)
    for count in (1, 3):
        same(program.module()(*sequences(count)), model(*sequences(count)))


@torch.no_grad()
def test_a_step_of_sampling_is_one_graph():
    body, ids = generator(positions="rotary").transformer, torch.arange(10).view(2, 5)
    torch._dynamo.reset()
    compiled, cache = torch.compile(body, fullgraph=True, backend="eager"), Cache(1, 5)
    pieces = [body(ids[:, :3], cache), compiled(ids[:, 3:4], cache), body(ids[:, 4:], cache)]
    torch.testing.assert_close(torch.cat(pieces, 1), body(ids), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_compiled_lookup_follows_the_weights():
    """The codes are kept outside of the graph, which reads those of the latest `eval`, load or `refresh`."""
    quantizer, z = tokenizer().spatial_quantizer, torch.from_numpy(tiny.normal("z", (2, 4, 16))).float()
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    same(compiled(z), quantizer(z))
    bias, numbers = quantizer.codebook.conv2.bias, torch.from_numpy(tiny.normal("bias", (8,))).float()
    changes = [
        lambda: quantizer.load_state_dict(tiny.tokenizer(seed=1).spatial_quantizer.state_dict()),
        lambda: (quantizer.train(), bias.add_(numbers), quantizer.eval()),
        lambda: (bias.add_(numbers), quantizer.codebook.refresh()),
    ]
    for change in changes:
        before = compiled(z).output
        change()
        ours = compiled(z)
        assert not torch.equal(ours.output, before)
        same(ours, quantizer(z))
