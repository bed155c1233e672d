"""Half precision: every stage trains in it, and words that stand out are the same."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from stages import STAGES, STEPS, command, log_lines

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

# By how much of their length latents may move: roundings by 2**-9 and 2**-12, added up over the layers.
MOVES = {torch.bfloat16: 2**-4, torch.float16: 2**-6}


def separated(z, table, k, moves):
    """z (B, N, C) -> (B, N): whether its k nearest words stay so, in their order, wherever it moves that far."""
    best = (z @ table.T - 0.5 * table.square().sum(1)).sort(dim=-1, descending=True)
    codes, clear = table[best.indices], torch.ones(z.shape[:2], dtype=torch.bool)
    for place in range(k):
        lead = best.values[..., place : place + 1] - best.values[..., place + 1 :]
        apart = (codes[..., place : place + 1, :] - codes[..., place + 1 :, :]).norm(dim=-1)
        clear &= (lead > moves * z.norm(dim=-1, keepdim=True) * apart).all(-1)
    return clear


@torch.no_grad()
@pytest.mark.parametrize("dtype", MOVES, ids=str)
@pytest.mark.parametrize("make", [tiny.tokenizer_config, tiny.union_config])
def test_separated_words_are_the_same_under_autocast(make, dtype):
    model, video = tiny.tokenizer(make()), tiny.clips(*range(8))

    def words():
        local = model.layout.to_local(model.encode(video).ids)
        return model.encoder(video), list(model.layout.split(local).values())

    latents, expected = words()
    with torch.autocast("cpu", dtype):
        moved, found = words()
    place, spread = 0, 0
    for quantizer, z, other in zip((model.spatial_quantizer, model.temporal_quantizer), latents, moved, strict=True):
        tables = quantizer.tables()
        for table, part, away in zip(tables, *(x.chunk(len(tables), -1) for x in (z, other)), strict=True):
            assert 0 < ((away - part).norm(dim=-1) / part.norm(dim=-1)).max() < MOVES[dtype]
            clear = separated(part, table, expected[place].shape[-1], MOVES[dtype])
            assert clear.float().mean() > 0.3, "too few to judge by"
            assert expected[place][clear].equal(found[place][clear])
            spread += len(expected[place][clear].unique())
            place += 1
    assert place == len(expected) and spread > 4 * place


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_in_bf16(runs, tmp_path, stage):
    settings = ["train.mixed_precision=bf16", f"train.output_dir={tmp_path}"]
    assert command(["train", str(runs / f"{stage}.yaml"), *settings]) == 0
    for kind in ("train/", "eval/"):
        lines, exact = log_lines(tmp_path, kind), log_lines(runs / stage, kind)
        assert json.dumps(lines, allow_nan=False) and len(lines) == len(exact)
    step = -1 if stage == "vtok_decoder" else 0  # whose output layer starts at zero
    first, exact = log_lines(tmp_path)[step], log_lines(runs / stage)[step]
    loss, expected = (line["train/loss/generator"] for line in (first, exact))
    assert loss != expected and loss == pytest.approx(expected, rel=0.05)
    for path in (tmp_path / f"checkpoint-{STEPS}").glob("*.safetensors"):
        floats = [value for value in load_file(path).values() if value.is_floating_point()]
        assert {value.dtype for value in floats} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can train in fp16")
def test_fp16_is_refused_on_a_cpu(runs, tmp_path, capsys):
    settings = ["train.mixed_precision=fp16", f"train.output_dir={tmp_path / 'out'}"]
    assert command(["train", str(runs / "stage1.yaml"), *settings]) == 2
    assert capsys.readouterr().err == "error: train.mixed_precision=fp16 needs a GPU; use no or bf16 on a CPU\n"
    assert not (tmp_path / "out").exists()
