"""Word graph to codes, the lookup in them, and when the codes are computed anew."""

import copy

import naive
import pytest
import tiny
import torch

from sweettok.layers.graph import symmetric_product
from sweettok.layers.lookup import nearest
from sweettok.priors.graph import WordGraph, normalised_adjacency
from sweettok.tokenizer.codebook import LanguageCodebook
from sweettok.tokenizer.quantizer import LanguageQuantizer

GRAPHS = {"spatial": tiny.prior().spatial, "temporal": tiny.prior().temporal}


def codebook(graph=GRAPHS["spatial"], dropout=0.5):
    return tiny.fill(LanguageCodebook(graph, hidden=10, out_dim=8, dropout=dropout))


def quantizer(per_query=2, graph=GRAPHS["spatial"]):
    return LanguageQuantizer(codebook(graph), per_query).eval()


def numbers(name, *shape):
    return torch.from_numpy(tiny.normal(name, shape)).float()


# --------------------------------------------------------------------------------------------------- graph to codes


def test_adjacency_counts_duplicates_both_ways_and_one_loop_a_word():
    edges = torch.tensor([[0, 0, 2, 1, 1], [1, 1, 0, 1, 2]])  # twice 0-1, 2-0, 1-1, 1-2; word 3 stands alone
    counts = torch.tensor([[1.0, 2, 1, 0], [2, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]])
    degree = torch.tensor([4.0, 4, 3, 1])
    expected = counts / (degree[:, None] * degree[None]).sqrt()
    torch.testing.assert_close(normalised_adjacency(edges, 4).to_dense(), expected)


@torch.no_grad()
@pytest.mark.parametrize("side", GRAPHS)
def test_codes(side):
    graph = GRAPHS[side]
    pairs = graph.edges.T.tolist()
    assert len({tuple(sorted(pair)) for pair in pairs}) < len(pairs) and any(a == b for a, b in pairs)
    module = codebook(graph)
    W = {name: value.double().numpy() for name, value in module.state_dict().items()}
    expected = naive.codebook(W, "", graph.vectors.double().numpy(), pairs)
    assert tiny.relative_error(module(), expected) < 1e-6


@torch.no_grad()
def test_self_edges_change_nothing():
    graph = GRAPHS["spatial"]
    more = WordGraph(graph.modifiers, graph.heads, graph.vectors, torch.cat((graph.edges, torch.tensor([[5], [5]])), 1))
    assert torch.equal(codebook(graph)(), codebook(more)())


@torch.no_grad()
def test_an_edge_listed_once_more_weighs_more():
    graph = GRAPHS["spatial"]
    more = WordGraph(graph.modifiers, graph.heads, graph.vectors, torch.cat((graph.edges, graph.edges[:, 4:5]), 1))
    assert not torch.allclose(codebook(graph)(), codebook(more)())


def test_the_product_s_gradient_is_that_of_torch_sparse_mm_and_sorts_nothing():
    graph = GRAPHS["spatial"]
    adjacency = normalised_adjacency(graph.edges, len(graph.words))
    assert torch.equal(adjacency.to_dense(), adjacency.to_dense().T)
    inputs = [numbers("x", 24, 9).requires_grad_() for _ in range(2)]
    entries = adjacency.indices(), adjacency.values()
    results = torch.sparse.mm(adjacency, inputs[0]), symmetric_product(*entries, inputs[1])
    assert torch.equal(*results)
    for result in results:
        result.backward(numbers("g", 24, 9))
    assert torch.equal(inputs[0].grad, inputs[1].grad)

    for product, transposed in (
        (lambda: torch.sparse.mm(adjacency, inputs[0]), True),
        (lambda: symmetric_product(*entries, inputs[1]), False),
    ):  # a transposed matrix is unsorted: on CUDA it is sorted before it is multiplied, at every step
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            product().sum().backward()
        assert ("aten::transpose" in {event.key for event in profile.key_averages()}) == transposed


def test_the_prior_travels_with_the_codebook():
    graph = GRAPHS["spatial"]
    module = codebook(graph)
    assert module.graph.words == graph.words
    assert torch.equal(module.graph.vectors, graph.vectors) and torch.equal(module.graph.edges, graph.edges)
    assert {"vectors", "edges"} <= module.state_dict().keys()
    module.vectors.zero_()
    assert graph.vectors.abs().sum() > 0, "the codebook writes into the prior it was given"


# ----------------------------------------------------------------------------------------------------------- lookup


@torch.no_grad()
@pytest.mark.parametrize("side", GRAPHS)
@pytest.mark.parametrize("per_query", [1, 2, 3])
def test_lookup(side, per_query):
    graph, module = GRAPHS[side], quantizer(per_query, GRAPHS[side])
    z = torch.nn.functional.normalize(numbers("z", 3, 6, 16), dim=-1)
    found = module(z)
    for b in range(3):
        codes = module.codebook().double().numpy()
        modifiers, heads, output = naive.lookup(z[b].double().numpy(), codes, graph.num_modifiers, per_query)
        assert [ids[b].tolist() for ids in found.ids] == [modifiers, heads]
        assert tiny.relative_error(found.output[b], output) < 1e-6
    assert all(ids.dtype == torch.int64 for ids in found.ids)
    assert found.output.dtype == torch.float32
    assert torch.equal(module.lookup(*found.ids), found.output)


@torch.no_grad()
def test_halves_are_what_the_losses_compare():
    module, z = quantizer(), numbers("z", 2, 5, 16)
    found = module(z)
    (z_modifiers, modifiers), (z_heads, heads) = found.halves
    assert torch.equal(torch.cat((z_modifiers, z_heads), -1), z)
    assert torch.equal(torch.cat((modifiers, heads), -1), found.output)


@torch.no_grad()
def test_modifiers_of_a_query_stand_together_nearest_first():
    module = quantizer()
    table = module.tables()[0]
    wanted = torch.tensor([[4, 1], [0, 7], [9, 4]])
    z = torch.zeros(1, 3, 16)
    z[0, :, :8] = table[wanted[:, 0]] + 0.45 * (table[wanted[:, 1]] - table[wanted[:, 0]])
    distances = torch.cdist(z[0, :, :8], table).argsort(-1)[:, :2]
    found = module(z)
    assert found.ids[0].tolist() == [distances.flatten().tolist()]
    codes = module.lookup(*found.ids)
    for query, (first, second) in enumerate(distances.tolist()):
        assert torch.equal(codes[0, query, :8], torch.stack((table[first], table[second])).mean(0))


def test_words_with_equal_codes_are_still_two_words():
    found = nearest(torch.ones(1, 3, 4), torch.zeros(5, 4), 2)
    assert found.shape == (1, 3, 2)
    assert (found[..., 0] != found[..., 1]).all()


def test_straight_through_hands_the_gradient_to_z_unchanged():
    module = quantizer().train()
    z = numbers("z", 2, 5, 16).requires_grad_()
    g = numbers("g", 2, 5, 16)
    module(z).output.backward(g)
    assert torch.equal(z.grad, g)
    assert all(p.grad is None for p in module.parameters()), "codes learn from their losses alone"


@torch.no_grad()
def test_lookup_is_float32_under_autocast():
    module = quantizer()
    z = torch.nn.functional.normalize(numbers("z", 2, 500, 16), dim=-1)
    plain = module(z)
    module.codebook.refresh()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = (z.chunk(2, -1)[1].flatten(0, 1) @ module.tables()[1].T).argmax(1)
        cast = module(z)
        looked_up = module.lookup(*cast.ids)
    assert (rounded != plain.ids[1].flatten()).any(), "bfloat16 gives the same words: nothing is tested"
    assert cast.output.dtype == looked_up.dtype == torch.float32
    assert all(half.dtype == torch.float32 for pair in cast.halves for half in pair)
    assert all(torch.equal(ids, others) for ids, others in zip(cast.ids, plain.ids, strict=True))
    assert torch.equal(cast.output, plain.output) and torch.equal(looked_up, plain.output)


def test_too_few_modifiers():
    with pytest.raises(ValueError, match="8 modifiers per query need at least as many words, but the prior lists 7"):
        quantizer(8, GRAPHS["temporal"])


# ------------------------------------------------------------------------------------------------------- kept codes


class Counted:
    """Counts the projections of a codebook, and checks what it gives against a projection made on the spot."""

    def __init__(self, module):
        self.module, self.calls, self.project = module, 0, module.project
        module.project = self.counting

    def counting(self):
        self.calls += 1
        return self.project()

    def projections(self, calls=1):
        """How many were made since this was last asked, `calls` calls without gradients included.

        The result of the calls must be up to date.
        """
        with torch.no_grad():
            for _ in range(calls):
                codes = self.module()
            made, self.calls = self.calls, 0
            assert torch.equal(codes, self.project()), "codes are not those of the present weights"
        return made


def test_evaluation_projects_once():
    counted = Counted(codebook())
    assert counted.projections(3) == 0, "evaluation mode began with them"
    counted.module.refresh()
    assert counted.projections(2) == 1
    counted.module.train()
    counted.module.eval()
    assert counted.projections(2) == 1


def optimizer_step(module):
    module.train()
    module().square().sum().backward()
    torch.optim.AdamW(module.parameters(), lr=0.1).step()
    module.eval()


@torch.no_grad()
def moving_average(module):
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.5 * value + 0.1)


@torch.no_grad()
def in_place(module):
    module.conv2.bias.add_(1)


@torch.no_grad()
def other_words(module):
    module.vectors[3] = 2.0


@torch.no_grad()
def other_edges(module):
    module.edges[1, 0] = (module.edges[1, 0] + 1) % len(module.vectors)


def new_parameter(module):
    module.conv1.lin.weight = torch.nn.Parameter(torch.ones_like(module.conv1.lin.weight))


def rounded_weights(module):
    module.bfloat16().float()  # moves the values to other memory, perhaps back to where they were


def load_while_training(module):
    """Another graph, too: of other edges."""
    module.train()
    other = tiny.fill(copy.deepcopy(module), seed=1)
    other.edges[0] = other.edges[0].flip(0)
    module.load_state_dict(other.state_dict())
    assert torch.equal(module.places, normalised_adjacency(other.edges, len(other.vectors)).indices())
    module.eval()


def averaged_weights(module):
    """As validation does: weights are written in evaluation mode, and the flag is set without a call."""
    module.eval()
    for child in module.modules():
        child.training = False
    moving_average(module)


def written_through_data(module):
    module.conv2.bias.data.add_(1)
    module.refresh()


CHANGES = {
    "optimizer step": optimizer_step,
    "load_state_dict": lambda module: module.load_state_dict(tiny.fill(copy.deepcopy(module), seed=1).state_dict()),
    "load_state_dict(assign)": lambda module: module.load_state_dict(
        tiny.fill(copy.deepcopy(module), seed=1).state_dict(), assign=True
    ),
    "moving average": moving_average,
    "in-place edit": in_place,
    "other vectors": other_words,
    "other edges": other_edges,
    "new parameter": new_parameter,
    "rounded weights": rounded_weights,
    "loaded while training": load_while_training,
    "averaged weights": averaged_weights,
    "written through data": written_through_data,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_weights_are_noticed(change):
    counted = Counted(codebook())
    with torch.no_grad():
        old = counted.module().clone()
    for _ in range(2):
        change(counted.module)
        # One of training comes first in an optimizer step, and one of bfloat16 in the rounding.
        assert counted.projections(2) == 1 + (change in (optimizer_step, rounded_weights))
    assert not torch.equal(counted.module().detach(), old)


@torch.no_grad()
def test_replaced_parameters_are_noticed_wherever_they_lie():
    """Memory of this size is given out again soon after it was freed, so some of these lie where the first one lay."""
    graph = WordGraph(("a", "b"), ("c",), numbers("wide", 3, 10000), torch.tensor([[0], [2]]))
    counted = Counted(codebook(graph))
    for seed in range(5):
        assert counted.projections() == (seed > 0)
        first = counted.module.conv1.lin.weight.data_ptr()
        for i in range(20):
            weight = torch.full((10, 10000), 1e-3 * (1 + i + 20 * seed))
            counted.module.conv1.lin.weight = torch.nn.Parameter(weight)
            del weight
            if counted.module.conv1.lin.weight.data_ptr() == first:
                break
    assert counted.projections() == 1


def test_training_redraws():
    counted = Counted(codebook().train())
    with torch.no_grad():
        first, second = counted.module(), counted.module()
    assert counted.calls == 2 and not torch.equal(first, second)
    counted.calls = 0
    counted.module.eval()
    assert counted.projections(2) == 1
    no_dropout = codebook(dropout=0.0)
    assert torch.equal(no_dropout.train()().detach(), no_dropout.eval()().detach())


@torch.no_grad()
def test_dropout_acts_between_the_layers_after_the_relu():
    module = codebook()
    seen = []
    module.conv2.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    module.refresh()
    for _ in range(10):
        module.train()()
    whole, *dropped = seen
    assert (whole >= 0).all() and (whole > 0).sum() > 50
    kept = torch.stack(dropped) != 0
    assert torch.equal(torch.stack(dropped), torch.where(kept, 2 * whole, 0.0))
    assert 0.4 < kept[:, whole > 0].float().mean() < 0.6


def test_gradients_after_kept_codes():
    module = codebook()
    with torch.inference_mode():
        first = module()
    with torch.no_grad():
        second = module()
    assert torch.equal(first, second) and not second.requires_grad and not second.is_inference()
    codes = module()
    assert codes.requires_grad and torch.equal(codes.detach(), second)
    codes.sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    with torch.inference_mode():
        assert torch.equal(module(), second)


def test_frozen_codes_are_kept_with_gradients_enabled():
    counted = Counted(codebook().requires_grad_(False))
    counted.module()
    counted.module()
    assert counted.calls == 0
    counted.module.conv2.lin.weight.requires_grad_(True)  # one weight that learns is enough
    assert counted.module().requires_grad and counted.calls == 1


def test_built_in_inference_mode():
    with torch.inference_mode():
        module = codebook()
        inside = module()
        with torch.no_grad():
            module.conv2.bias.add_(1)
        # Writes to such tensors are not counted, so nothing may be kept.
        torch.testing.assert_close(module(), inside + 1)
    with torch.no_grad():
        torch.testing.assert_close(module(), inside + 1)


def test_copies_keep_nothing_of_each_other():
    first = codebook()
    with torch.no_grad():
        first()
        second = copy.deepcopy(first)
        second.conv2.bias.add_(1)
        torch.testing.assert_close(second(), first() + 1)
