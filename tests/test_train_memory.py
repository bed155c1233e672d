"""What a training step keeps for its backward passes: less when it recomputes, nothing of what is frozen."""

import pytest
import torch
from stages import STAGES, build_task, config_of, first_batch
from torch.autograd.graph import saved_tensors_hooks

from sweettok import pixels
from sweettok.train.task import StepContext

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

CONTEXT = StepContext(step=0, seed=3, batch_start=0, batch_size=4, global_batch=4)
LPIPS = ("loss.perceptual.kind=lpips", "loss.perceptual.untrained=true", "loss.perceptual.weight=2.0")


class Kept:
    """Inside, the storages that are kept for backward passes, weights and buffers of `task` included."""

    def __init__(self, task):
        modules = [value for value in vars(task).values() if isinstance(value, torch.nn.Module)]
        self.own = {value.untyped_storage().data_ptr() for module in modules for value in module.state_dict().values()}
        self.storages, self.count = {}, 0
        self.hooks = saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor):
        self.count += 1
        if tensor.layout == torch.strided:  # else a word graph, which is there anyway
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    def __enter__(self):
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        """Without the weights, which are there anyway."""
        return sum(storage.nbytes() for address, storage in self.storages.items() if address not in self.own)


def make(runs, stage, *overrides):
    torch.manual_seed(0)
    task = build_task(config_of(runs, stage, *overrides))
    return task, first_batch(task)


def step(task, batch) -> Kept:
    """Forward and backward passes of all trained modules."""
    CONTEXT.seed_default_generators()
    with Kept(task) as kept:
        for _, loss, _ in task.losses(batch, CONTEXT):
            loss.backward()
    return kept


@pytest.mark.parametrize("stage", STAGES)
def test_recomputing_keeps_less_and_gives_the_same_gradients(runs, stage):
    kept, gradients = {}, {}
    for recompute in (False, True):
        task, batch = make(runs, stage, f"train.gradient_checkpointing={recompute}")
        kept[recompute] = step(task, batch).bytes
        gradients[recompute] = [param.grad for trained in task.trained.values() for param in trained.parameters]
    # What is not recomputed at these sizes, such as inputs of blocks and the discriminator, is up to 61%.
    assert 0 < kept[True] < 2 / 3 * kept[False]
    assert all(torch.equal(one, other) for one, other in zip(*gradients.values(), strict=True))


@pytest.mark.parametrize(
    ("stage", "holder", "method", "frozen"),
    [
        ("stage1", "teacher", "encode", ("teacher", "model.pixel_decoder")),
        ("stage2", "model", "quantize", ("model.encoder", "model.spatial_quantizer", "model.temporal_quantizer")),
    ],
)
def test_frozen_parts_make_no_graph(runs, monkeypatch, stage, holder, method, frozen):
    task, batch = make(runs, stage)
    parts = [part_of(task, name) for name in frozen]
    addresses = {
        value.untyped_storage().data_ptr() for part in parts for value in (*part.parameters(), *part.buffers())
    }
    assert not any(param.requires_grad for part in parts for param in part.parameters())
    run, during, kept = getattr(getattr(task, holder), method), [], Kept(task)

    def watched(*args):
        before = kept.count
        result = run(*args)
        during.append(kept.count - before)
        return result

    monkeypatch.setattr(getattr(task, holder), method, watched)
    with kept:
        for _, loss, _ in task.losses(batch, CONTEXT):
            loss.backward()
    assert during == [0] and kept.count > 0
    assert kept.own & kept.storages.keys(), "the weights that learn are kept"
    assert not addresses & kept.storages.keys()
    assert all(param.grad is None for part in parts for param in part.parameters())


def part_of(task, name):
    for word in name.split("."):
        task = getattr(task, word)
    return task


@pytest.mark.parametrize(("stage", "calls"), [("stage2", 1), ("proxy", 2)])
def test_perceptual_network_sees_one_frame_of_each_clip(runs, stage, calls):
    """The proxy's still images pass through it too."""
    task, batch = make(runs, stage, *LPIPS)
    seen = []
    first = task.pixels.perceptual.vgg["features"][0]
    first.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    next(task.losses(batch, CONTEXT))
    assert seen == [(4, 3, 32, 32)] * 2 * calls


def test_perceptual_loss_moves_the_sampled_frames_alone(runs):
    task, batch = make(runs, "stage2", *LPIPS, "loss.reconstruction_weight=0", "loss.adversarial.start_step=2")
    real = pixels.to_float(batch["video"])
    fake = (0.5 * real).requires_grad_()
    total, _ = task.pixels.generator(fake, real, CONTEXT)
    total.backward()
    draws = torch.randint(5, (4,), generator=CONTEXT.generator("perceptual frame"))
    assert torch.equal(fake.grad.abs().sum((1, 3, 4)) > 0, torch.nn.functional.one_hot(draws, 5).bool())
