"""Exported models: generators in transformers, tokenizers as packages of torch.export."""

import json

import pytest
import tiny
import torch
from test_generator import VARIANTS, make
from test_graphs import PROXY, SHALLOW
from test_sequence import SMALL, SMALL_UNION, some_ids
from test_variants import tokenizer as variant_tokenizer

from sweettok.cli.main import main
from sweettok.generator.serving import LegalIds

transformers = pytest.importorskip("transformers")


def load(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize("variant", [*VARIANTS, "learned and tied"])
@torch.no_grad()
def test_logits_in_transformers(variant, tmp_path):
    model = make(**{"tied_head": True, **VARIANTS.get(variant, {})} if variant not in VARIANTS else VARIANTS[variant])
    model.to_transformers(tmp_path)
    other, ids = load(tmp_path), torch.randint(model.sequence.vocab_size, (2, model.sequence.block_size))
    assert (tmp_path / "modeling_clips.py").exists() == model.config.qk_norm
    torch.testing.assert_close(
        other(ids).logits, model.transformer.logits(model.transformer(ids)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("layout", "options"), [(SMALL, {}), (SMALL_UNION, {"positions": "rotary"})])
def test_generate_of_transformers(layout, options, tmp_path):
    """Greedy ids are ours, with guidance too; drawn ids are legal."""
    model = make(layout, **options)
    model.to_transformers(tmp_path)
    other, legal, labels = load(tmp_path), LegalIds.from_folder(tmp_path), torch.tensor([0, 2, 1])
    prompt, null = (model.sequence.prompt(classes) for classes in (labels, torch.full((3,), -1)))

    def generate(**settings):
        return legal.ids(other.generate(prompt, logits_processor=[legal], **settings))

    assert generate(do_sample=False).equal(model.sample(labels, temperature=0.0))
    guided = generate(do_sample=False, guidance_scale=3.0, negative_prompt_ids=null)
    assert guided.equal(model.sample(labels, temperature=0.0, cfg_scale=3.0))
    torch.manual_seed(0)
    drawn = [generate(temperature=2.0) for _ in range(2)]
    layout.check(torch.cat(drawn))
    assert not drawn[0].equal(drawn[1])


def test_legal_ids_of_a_given_clip(tmp_path):
    model = make(num_classes=0, given_frames=5)
    model.to_transformers(tmp_path)
    legal, sequence = LegalIds.from_folder(tmp_path), model.sequence
    assert legal.sequence == sequence
    given, ids = some_ids(SMALL, 2, seed=1), some_ids(SMALL, 2)
    whole = torch.cat((sequence.prompt(given), sequence.target(ids)), 1)
    assert legal.ids(whole).equal(legal.ids(whole[:, :-1])) and legal.ids(whole).equal(ids)
    for place in range(sequence.target_length):
        scores = legal(whole[:, : sequence.prompt_length + place], torch.zeros(2, sequence.vocab_size))
        assert scores.gather(1, whole[:, sequence.prompt_length + place, None]).eq(0).all()
    allowed = sum(legal.mask(torch.zeros(sequence.vocab_size), n).isfinite().sum() for n in range(len(legal.ranges)))
    assert allowed == sum(s.length * s.vocab_size for s in SMALL.segments) + sum(map(len, sequence.separators)) + 1
    with pytest.raises(ValueError, match="is the prompt complete"):
        legal(whole[:, :3], torch.zeros(2, sequence.vocab_size))
    with pytest.raises(ValueError, match="is no adjective"):
        legal.ids(whole.roll(1, 1))


def test_packages_of_encode_and_decode(tmp_path, monkeypatch, capsys):
    """For other batch sizes than that of the export ids are equal, and pixels up to rounding."""
    tokenizer = tiny.tokenizer(tiny.tokenizer_config(PROXY, **SHALLOW))
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained("model")
    assert main(["export", "torch", "--checkpoint", "model", "--out", "packages"]) == 0
    extra, files = {"sweettok.json": ""}, capsys.readouterr().out.split()
    programs = [torch.export.load(file, extra_files=extra) for file in files]
    encode, decode = (program.module() for program in programs)
    for clips in (tiny.clips(0), tiny.clips(0, 1, 2)):
        ids = tokenizer.encode(clips).ids
        assert encode(clips).equal(ids)
        torch.testing.assert_close(decode(ids), tokenizer.decode(ids), rtol=0, atol=1e-5)
    # Operations of torch alone, so that the files load without our package, and no weights that are not used.
    nodes = [node for program in programs for node in program.graph.nodes if node.op == "call_function"]
    assert not [node.target for node in nodes if "sweettok" in str(node.target)]
    weights = [name for program in programs for name in program.state_dict]
    assert not [name for name in weights if "conv1" in name or "vectors" in name]
    assert json.loads(extra["sweettok.json"])["ids_hash"] == tokenizer.ids_hash()


def test_packages_of_another_recipe(tmp_path):
    """One codebook for both branches, one word for each query, the likeliest code."""
    recipe = {"pixel_path": "argmax", "decoder_order": "first_frame"}
    tokenizer = variant_tokenizer("language", proxy=PROXY, **SHALLOW, **recipe)
    encode, decode = (torch.export.load(path).module() for path in tokenizer.export(tmp_path))
    clips = tiny.clips(0)
    ids = tokenizer.encode(clips).ids
    assert encode(clips).equal(ids)
    torch.testing.assert_close(decode(ids), tokenizer.decode(ids), rtol=0, atol=1e-5)


def test_what_cannot_be_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="training mode"):
        tiny.tokenizer().train().export("packages")
    tiny.tokenizer(tiny.tokenizer_config(PROXY, pixel_path="none")).save_pretrained("stage1")
    assert main(["export", "torch", "--checkpoint", "stage1", "--out", "packages"]) == 2
    make().save_pretrained("generator")
    assert main(["export", "transformers", "--checkpoint", "generator", "--out", "generator"]) == 2
    assert main(["export", "transformers", "--checkpoint", "stage1", "--out", "other"]) == 2
    assert main(["export", "transformers", "--checkpoint", "generator", "--out", "other"]) == 0
    with pytest.raises(FileNotFoundError, match="holds no sequence.json"):
        LegalIds.from_folder("generator")
    assert "is an input" in capsys.readouterr().err
