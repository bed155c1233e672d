import math

import pytest
import torch
from torch import nn
from training_golden import golden_json

from sweettok.train.ema import EMA


class Net(nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.frozen = nn.Parameter(torch.full((2,), value), requires_grad=False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("codes", torch.full((3,), value))
        self.register_buffer("constant", torch.ones(1), persistent=False)
        nn.init.constant_(self.layer.weight, value)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_starts_as_a_copy_of_the_model():
    model = Net(1.5)
    ema = EMA(model)
    assert ema.shadow.keys() == model.state_dict().keys()
    assert all(torch.equal(ema.shadow[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.layer.weight.fill_(9.0)
    assert ema.shadow["layer.weight"].eq(1.5).all()


def test_averages_what_trains_and_copies_the_rest():
    model = Net(0.0)
    ema = EMA(model, cap=0.15)
    ema.update(model)
    with torch.no_grad():
        for value in (model.layer.weight, model.frozen, model.codes, model.norm.running_mean):
            value.fill_(1.0)
        model.norm.num_batches_tracked.fill_(7)
    ema.update(model)
    assert ema.decay() == 0.15
    assert ema.shadow["layer.weight"].allclose(torch.tensor(0.85))
    for name in ("frozen", "codes", "norm.running_mean"):
        assert ema.shadow[name].eq(1.0).all(), name
    assert ema.shadow["norm.num_batches_tracked"].item() == 7


def test_first_update_takes_the_model_over():
    model = Net(0.0)
    ema = EMA(model)
    with torch.no_grad():
        model.layer.weight.fill_(3.0)
    ema.update(model)
    assert torch.equal(ema.shadow["layer.weight"], model.layer.weight)


def test_half_precision_models_are_averaged_in_float32():
    model = Net(1.0).bfloat16()
    ema = EMA(model)
    ema.update(model)
    with torch.no_grad():
        model.layer.weight.add_(0.0078125)
    for _ in range(20):
        ema.update(model)
    shadow = ema.shadow["layer.weight"]
    assert shadow.dtype == torch.float32 and (shadow != shadow.bfloat16().float()).all()
    with ema.applied(model):
        assert model.layer.weight.dtype == torch.bfloat16


def test_applied_swaps_in_and_restores_bit_for_bit():
    model = Net(0.0)
    ema = EMA(model)
    with torch.no_grad():
        model.layer.weight.fill_(0.1)
        model.codes.fill_(5.0)
    own, shadow = snapshot(model), {name: value.clone() for name, value in ema.shadow.items()}
    pointer = model.layer.weight.data_ptr()
    with pytest.raises(KeyError), ema.applied(model):
        assert model.layer.weight.eq(0.0).all() and model.codes.eq(0.0).all()
        model.norm(torch.randn(4, 2))  # running statistics made inside do not leak out
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, shadow[name]) for name, value in ema.shadow.items())
    assert model.layer.weight.data_ptr() == pointer


def test_resumed_average_continues_with_its_count():
    def run(resume_at):
        torch.manual_seed(0)
        model = Net(0.0)
        ema = EMA(model, cap=0.3)
        for step in range(10):
            if step == resume_at:
                saved = ema
                ema = EMA(Net(5.0), cap=0.3)
                ema.restore(saved.calls, saved.shadow)
            with torch.no_grad():
                model.layer.weight.fill_(math.sin(step))
            ema.update(model)
        return ema

    unbroken, resumed = run(None), run(6)
    assert resumed.calls == 10
    assert all(torch.equal(resumed.shadow[name], value) for name, value in unbroken.shadow.items())


def test_state_does_not_follow_a_loaded_average():
    first = EMA(Net(1.0))
    second = EMA(Net(0.0))
    second.restore(first.calls, first.shadow)
    second.shadow["codes"].fill_(8.0)
    assert first.shadow["codes"].eq(1.0).all()


def test_average_of_another_model_is_refused():
    ema = EMA(Net())
    other = EMA(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="another model"):
        ema.restore(other.calls, other.shadow)
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        EMA(Net(), cap=1)


def test_golden_trajectory(golden_folder):
    expected = golden_json(golden_folder)["ema"]
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model)
    for call, decay, value in expected["trajectory_param_sin(i)"]:
        with torch.no_grad():
            model.weight.fill_(math.sin(call))
        ema.update(model)
        assert ema.calls == call and ema.decay() == pytest.approx(decay, abs=1e-12)
        assert ema.shadow["weight"].item() == pytest.approx(value, abs=1e-6)


def test_golden_decay(golden_folder):
    expected = golden_json(golden_folder)["ema"]
    ema = EMA(nn.Linear(1, 1))
    for call, decay in expected["decay_at_call"].items():
        ema.calls = int(call)
        assert ema.decay() == pytest.approx(decay, abs=1e-15), call
    ema.calls = expected["first_call_at_cap_0.999"]
    assert ema.decay() == 0.999
    ema.calls -= 1
    assert ema.decay() < 0.999
