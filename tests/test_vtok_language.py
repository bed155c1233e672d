"""The language model of VTok: the cache changes nothing, losses see what they should, real classes, saved models."""

from dataclasses import replace

import pytest
import tiny_language as tiny
import torch
from torch.nn import functional as F

pytest.importorskip("transformers", reason="not installed: pip install -e '.[vtok]'")

from sweettok.vtok.heads import build_head
from sweettok.vtok.language import VideoLanguageModel
from sweettok.vtok.language_config import HEADS, TEMPLATES, HeadConfig, LanguageConfig, LoraConfig, ScratchConfig
from sweettok.vtok.sequences import CAPTION, VISUAL, Mixed, grid_positions
from sweettok.vtok.statistics import TokenStatistics

CLASSES = ("llama", "llava_next", "qwen2_5_vl")
CAPTIONS = ["a red ball moves left", "two squares"]


def forced_states(model, captions, clips, dropped=None):
    """States that the decoder is given in training."""
    items = [
        {"values": values, "kinds": clips.kinds, "caption": text}
        for text, values in zip(captions, clips.values, strict=True)
    ]
    found = []
    with torch.no_grad():
        model(
            model.sequences.collate(items),
            dropped=dropped,
            decoder=lambda states, mask: found.append(states) or states.sum() * 0,
        )
    return found[0]


@pytest.fixture(scope="module")
def model():
    return tiny.language_model()


# ------------------------------------------------------------------------------------------------------ generation


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("name", CLASSES)
def test_a_cached_loop_fed_the_truth_equals_teacher_forcing(name, layer):
    model = tiny.language_model(name, state_layer=layer, motion_mlp=True, standardise_inputs=True)
    clips = tiny.tokens(seed=1)
    forced = forced_states(model, CAPTIONS, clips)
    torch.testing.assert_close(model.states(CAPTIONS, clips), forced, rtol=1e-4, atol=1e-5)
    assert (forced[:, 1:] - forced[:, :-1]).abs().amax(-1).min() > 1e-3  # states differ, so an offset would be seen


@pytest.mark.parametrize("head", HEADS)
def test_a_sample_depends_on_its_seed_and_index_only(head):
    model = tiny.language_model(head=head)
    together = model.generate([*CAPTIONS, CAPTIONS[0]], 0.5, seed=3, cfg_scale=2.0)
    assert together.tokens.values.shape == (3, tiny.KEY + 3, tiny.DIM)
    for i in (1, 2):
        alone = model.generate([*CAPTIONS, CAPTIONS[0]][i], 0.5, seed=3, cfg_scale=2.0, indices=[i])
        torch.testing.assert_close(alone.tokens.values[0], together.tokens.values[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.states[0], together.states[i], rtol=1e-4, atol=1e-4)
    draws = not together.tokens.values[0].equal(together.tokens.values[2])
    assert draws == (head in ("flow", "fsq"))  # the same caption, another index
    other = model.generate(CAPTIONS[0], 0.5, seed=4, cfg_scale=2.0).tokens.values[0]
    assert torch.allclose(other, together.tokens.values[0], atol=1e-4) != draws


def test_positions_on_a_grid():
    """Left padding, a token of text, a key frame of 2 x 2, two motion tokens, text; and the cache agrees."""
    roles = torch.tensor([[0, 1, 4, 4, 4, 4, 4, 4, 1, 1]])
    kinds = torch.tensor([[0, 0, 0, 0, 1, 1]])
    found = grid_positions(roles > 0, roles, kinds, 4)[:, 0].tolist()
    assert found[0] == [0, 0, 1, 1, 1, 1, 2, 3, 4, 5]
    assert found[1] == [0, 0, 1, 1, 2, 2, 1, 1, 4, 5]
    assert found[2] == [0, 0, 1, 2, 1, 2, 1, 1, 4, 5]
    model, clips = tiny.language_model("qwen2_5_vl", positions="grid"), tiny.tokens(seed=1)
    forced = forced_states(model, CAPTIONS, clips)
    torch.testing.assert_close(model.states(CAPTIONS, clips), forced, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(forced, forced_states(tiny.language_model("qwen2_5_vl"), CAPTIONS, clips), atol=1e-4)
    with pytest.raises(ValueError, match="language.positions=text"):
        tiny.language_model(positions="grid")


def test_guidance(model):
    """Scale 1 reads the caption, 0 does not, and others lie on the line through both predictions."""
    one, zero, three = (model.generate(CAPTIONS, 0.0, cfg_scale=scale).tokens.values[:, 0] for scale in (1.0, 0.0, 3.0))
    torch.testing.assert_close(three, zero + 3 * (one - zero), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(zero[0], zero[1])
    assert not torch.allclose(one[0], one[1], atol=1e-4)


def test_given_tokens_are_continued(model):
    clips = tiny.tokens(seed=5)
    first = {"values": clips.values[:, :4], "times": clips.times[:, :4], "kinds": clips.kinds[:4]}
    key = replace(clips, **first)
    found = model.generate(CAPTIONS, like=clips, given=key).tokens
    assert found.values[:, :4].equal(key.values) and found.kinds.equal(clips.kinds) and found.times.equal(clips.times)
    assert not torch.allclose(found.values[:, 4:], model.generate(CAPTIONS, like=clips).tokens.values[:, 4:])


def test_five_seconds_are_46_tokens():
    model = tiny.language_model(key_tokens=16)
    clip = model.generate("a red ball", 5.0).tokens
    assert clip.values.shape[1] == 46 and int((clip.kinds == 0).sum()) == 16
    assert clip.times[0, 15:18].tolist() == pytest.approx([0, 1 / 6, 1 / 3]) and clip.times[0, -1] == 5


# ---------------------------------------------------------------------------------------------------------- losses


def test_the_answer_s_loss_is_that_of_transformers():
    model = tiny.language_model("llama")
    batch = tiny.batch(model)
    found = model(batch)
    theirs = tiny.text_model("llama", len(model.tokenizer)).eval()
    theirs.model.load_state_dict(model.backbone.body.state_dict())
    theirs.lm_head.load_state_dict(model.backbone.head.state_dict())
    losses = []
    for i in range(2):
        row = model.sequences.question((7, 9)[i], ("what moves?", "how many?")[i], ("ball", "two squares")[i])
        ids, roles = torch.tensor([row.ids]), torch.tensor([row.roles])
        count = (7, 9)[i]
        inputs = model.embed(
            ids, roles, model.project(batch["values"][i : i + 1, :count], batch["kinds"][i : i + 1, :count])
        )
        losses.append(theirs(inputs_embeds=inputs, labels=ids.masked_fill(roles != 2, -100)).loss)
    torch.testing.assert_close(found.answer, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_the_visual_loss_is_the_error_of_standardised_tokens(model):
    batch = tiny.batch(model)
    states = []
    found = model(batch, decoder=lambda s, mask: states.append((s, mask)) or s.new_tensor(7.0))
    (states, exists), expected = states[0], []
    assert exists.sum(1).tolist() == [9, 6]
    for row in range(2):
        count = int(exists[row].sum())
        values, kinds = batch["values"][2 + row, :count], batch["kinds"][2 + row, :count]
        statistics = model.statistics
        target = (values - statistics.mean[kinds]) / statistics.variance[kinds].sqrt()
        expected.append(F.mse_loss(model.head.out(states[row, :count]), target))
    torch.testing.assert_close(found.visual, torch.stack(expected).mean())
    assert found.total.item() == pytest.approx((found.answer + found.visual + 7).item())


@pytest.mark.parametrize("head", HEADS)
def test_padding_changes_no_loss(head):
    model = tiny.language_model(head=head)
    batch, draws = tiny.batch(model), torch.randn(2, 9, model.head.num_draws)
    before = model(batch, draws)
    batch["ids"] = torch.where(batch["roles"] == 0, 5, batch["ids"])
    for row, count in enumerate((batch["roles"] == VISUAL).sum(1)):
        batch["values"][row, count:] = 100.0
    after = model(batch, draws)
    for name in ("answer", "visual", "total"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))


def test_a_dropped_caption_is_no_caption(model):
    clips = tiny.tokens(seed=6)
    dropped = forced_states(model, CAPTIONS, clips, torch.tensor([True, False]))
    torch.testing.assert_close(dropped[0], forced_states(model, ["", ""], clips)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dropped[1], forced_states(model, CAPTIONS, clips)[1])


@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_what_they_should(head):
    """Every parameter, and values that are read; not values that are targets only."""
    model = tiny.language_model(head=head, motion_mlp=True).train()
    batch = tiny.batch(model)
    batch["values"].requires_grad_()
    model(batch).total.backward()
    assert not [name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()]
    touched = batch["values"].grad.abs().sum(-1) > 0
    exists = torch.arange(9) < (batch["roles"] == VISUAL).sum(1, keepdim=True)
    assert touched[:2].equal(exists[:2])
    expected = exists[2:].clone()
    expected[0, 8] = expected[1, 5] = False  # the last tokens are targets only
    assert touched[2:].equal(expected & (head != "fsq"))


def test_detached_generation_leaves_the_projector_to_the_questions():
    model = tiny.language_model(detach_generation=True)
    batch = tiny.batch(model)
    batch["values"].requires_grad_()
    model(batch).visual.backward()
    assert not batch["values"].grad.any() and not model.projector[0].weight.grad.any()
    assert model.start.grad.any() and model.head.out.weight.grad.any()


def test_a_decoder_s_loss_reaches_the_states(model):
    model.zero_grad()
    model(tiny.batch(model), decoder=lambda states, mask: (states * mask[..., None]).square().mean()).decoder.backward()
    assert model.start.grad.any() and model.backbone.body.layers[0].mlp.up_proj.weight.grad.any()
    assert model.head.out.weight.grad is None
    model.zero_grad()


# ----------------------------------------------------------------------------------------------------------- heads


def test_statistics_are_those_of_all_tokens():
    statistics, clips = TokenStatistics(tiny.DIM), [tiny.tokens(3, 9, seed) for seed in range(4)]
    for clip in clips:
        statistics.update(clip.values + 5, clip.kinds.expand(3, -1), torch.ones(3, 9, dtype=torch.bool))
    values = torch.cat([clip.values for clip in clips]) + 5
    for kind in (0, 1):
        ours = values[:, clips[0].kinds == kind].flatten(0, 1)
        torch.testing.assert_close(statistics.mean[kind], ours.mean(0))
        torch.testing.assert_close(statistics.variance[kind], ours.var(0, unbiased=False), rtol=1e-3, atol=1e-5)
    kinds = clips[0].kinds.expand(3, -1)
    standard = statistics.standardise(clips[0].values, kinds)
    torch.testing.assert_close(statistics.restore(standard, kinds), clips[0].values, rtol=1e-4, atol=1e-4)


def test_flow_draws_both_continuations_and_regression_their_mean():
    """After one and the same state, the token is 1 or -1 in all channels."""
    torch.manual_seed(0)
    state, found = torch.ones(128, 1, 4), {}
    for kind in ("mse", "flow"):
        head = build_head(4, 2, HeadConfig(kind, flow_width=32))
        optimizer = torch.optim.Adam(head.parameters(), 1e-2)
        for _ in range(100):
            target = (torch.randint(2, (128, 1, 1)) * 2.0 - 1).expand(-1, -1, 2)
            optimizer.zero_grad()
            head.loss(state, target, torch.randn(128, 1, head.num_draws)).mean().backward()
            optimizer.step()
        with torch.no_grad():
            found[kind] = head.predict(state[:, 0], 1.0, torch.randn(128, head.num_draws))
    assert found["mse"].abs().max() < 0.3
    near = (found["flow"].abs() - 1).abs().amax(1) < 0.3
    assert near.float().mean() > 0.9 and 0.3 < (found["flow"][:, 0] > 0).float().mean() < 0.7


def test_codes_are_decoded_to_what_was_quantised():
    torch.manual_seed(0)
    head = build_head(8, tiny.DIM, HeadConfig("fsq", fsq_levels=(3, 4), fsq_codes=2))
    target = torch.randn(5, tiny.DIM)
    rebuilt, ids = head.quantise(target)
    assert ids.shape == (5, 2) and ids.unique().numel() > 2 and int(ids.max()) < 12
    head.out = torch.nn.Identity()
    certain = 100 * F.one_hot(ids, 12).float().flatten(1)
    torch.testing.assert_close(head.predict(certain, 1.0, torch.randn(5, 2)), rebuilt)
    assert head.loss(certain, target, torch.randn(5, 2)).mean() < 2  # cross-entropy 0, and the reconstruction


# --------------------------------------------------------------------------------------------------- real classes


@pytest.mark.parametrize("name", CLASSES)
def test_states_are_those_of_the_real_model(name):
    torch.manual_seed(0)
    theirs = tiny.text_model(name, 280).eval()
    model = VideoLanguageModel(tiny.config(), theirs, tiny.train_tokenizer(tiny.TEXTS, 280))
    inputs, mask = torch.randn(2, 6, tiny.WIDTH), torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        expected = theirs(inputs_embeds=inputs, attention_mask=mask.long()).logits
        ours = model.backbone.logits(model.backbone(inputs, mask, torch.arange(6).expand(2, -1))[0])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_projector_starts_as_the_model_s_own():
    torch.manual_seed(0)
    theirs, tokenizer = tiny.text_model("llava_next", 280), tiny.train_tokenizer(tiny.TEXTS, 280)
    features = torch.randn(3, 5, tiny.DIM)
    model = VideoLanguageModel(tiny.config(), theirs, tokenizer)
    own = theirs.model.multi_modal_projector
    assert model.projector.copied
    torch.testing.assert_close(model.project(features, torch.zeros(3, 5, dtype=torch.long)), own(features))
    assert not VideoLanguageModel(tiny.config(visual_dim=7), theirs, tokenizer).projector.copied


def test_adapters_alone_are_trained_and_saved(tmp_path):
    torch.manual_seed(0)
    tokenizer = tiny.train_tokenizer(tiny.TEXTS, 280)
    tiny.text_model("llava_next", len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = tiny.config(base=str(tmp_path / "base"), lora=LoraConfig(rank=2))
    model = VideoLanguageModel.from_base(settings)
    trained = {name for name, param in model.backbone.named_parameters() if param.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".")[-2] for name in trained if name.endswith("weight")} == {"default"}
    before = {name: param.clone() for name, param in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    for _ in range(2):  # the first step changes only lora_B, which starts at zero
        optimizer.zero_grad()
        model.train()(tiny.batch(model)).total.backward()
        optimizer.step()
    changed = {name for name, param in model.named_parameters() if not param.equal(before[name])}
    assert changed == {f"backbone.{name}" for name in trained} | {n for n in before if not n.startswith("backbone.")}
    assert not [n for n in model.state_dict() if n.startswith("backbone.") and "lora_" not in n]
    model.eval().save_pretrained(tmp_path / "saved")
    again = VideoLanguageModel.from_pretrained(tmp_path / "saved")
    expected = model.generate(CAPTIONS, 0.5)
    assert again.generate(CAPTIONS, 0.5).states.equal(expected.states)
    tiny.text_model("llava_next", len(tokenizer)).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="others than those that this model was trained with"):
        VideoLanguageModel.from_pretrained(tmp_path / "saved")


# --------------------------------------------------------------------------------------------------------- saved


@pytest.mark.parametrize("head", ["mse", "fsq"])
def test_a_saved_model_is_the_same(head, tmp_path):
    model = tiny.language_model(head=head, motion_mlp=True, template=TEMPLATES["plain"])
    model.save_pretrained(tmp_path)
    again = VideoLanguageModel.from_pretrained(tmp_path)
    assert again.config == model.config and again.statistics.count.equal(model.statistics.count)
    assert again.generate(CAPTIONS, 0.5).tokens.values.equal(model.generate(CAPTIONS, 0.5).tokens.values)
    clips, text = tiny.tokens(seed=2), "Ünknown wörds, in full!"
    assert again.tokenizer.decode(again.tokenizer(text).input_ids) == text
    scores = [m.option_scores(clips, ["what moves?"] * 2, ["ball", "two"]) for m in (model, again)]
    assert scores[0].equal(scores[1])


# ------------------------------------------------------------------------------------------------------- answers


def test_scores_of_options_are_log_probabilities(model):
    """Each option's score is minus the sum of the losses of its tokens."""
    clips = tiny.tokens(1, seed=4)
    scores = model.option_scores(clips, ["what moves?"], ["ball", "two squares"])[0]
    for option, score in zip(["ball", "two squares"], scores, strict=True):
        item = {"values": clips.values[0], "kinds": clips.kinds, "question": "what moves?", "answer": option}
        batch = model.sequences.collate([item])
        with torch.no_grad():
            assert score.item() == pytest.approx(-(model(batch).answer * batch["answers"].shape[1]).item(), rel=1e-4)


def test_it_learns_to_read_and_to_write():
    """Sixty steps on two kinds of clips: answers with and without options, and tokens by caption."""
    torch.manual_seed(0)
    model = VideoLanguageModel.from_scratch(
        tiny.config(scratch=ScratchConfig(32, 2, 2, 280, 64), standardise_inputs=True), tiny.TEXTS
    )
    words, pattern = ("ball", "two squares"), torch.randn(5, tiny.DIM)

    def clip(word):
        sign = 1 if word == "ball" else -1
        return {"values": sign * pattern + 0.1 * torch.randn(5, tiny.DIM), "kinds": torch.tensor([0, 0, 0, 0, 1])}

    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
    for _ in range(60):
        questions = [clip(word) | {"question": "what moves?", "answer": word} for word in words]
        captions = [clip(word) | {"caption": word} for word in words]
        optimizer.zero_grad()
        model(model.sequences.collate([*captions, *questions])).total.backward()
        optimizer.step()
    model.eval()
    written = model.generate(words, like=tiny.tokens(2, 5)).tokens
    assert (written.values[0] - pattern).abs().mean() < 0.3 and (written.values[1] + pattern).abs().mean() < 0.3
    assert model.answer(written, "what moves?") == list(words)
    assert model.answer(written, ["what moves?"] * 2, ["two squares", "ball"]) == list(words)


def test_videos_and_questions_alone(model):
    clip = tiny.tokens(1, seed=8)
    assert isinstance(model.answer(None, "what moves?", max_new_tokens=2), str)
    assert model.answer(None, "what moves?", ["ball", "two"]) in ("ball", "two")
    model.source = lambda video, fps: clip if (video, fps) == ("clip.mp4", 24) else None
    assert model.answer("clip.mp4", "what moves?", ["ball"], fps=24) == "ball"
    model.source = None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.answer("clip.mp4", "what?"), "model.source"),
        (lambda m: m.answer(None, "what?", ["ball", "ball"]), "different answers"),
        (lambda m: m.answer(tiny.tokens(2), ["what?"] * 3), "2 clips and 3 questions"),
        (lambda m: m.answer(None, "what? " * 60), "96 positions"),
        (lambda m: m.project(torch.zeros(1, 2, 8), torch.zeros(1, 2).long()), "12 channels; got 8"),
        (lambda m: tiny.language_model(template=TEMPLATES["llama3"]), r"has <\|begin_of_text\|>, which is no token"),
        (lambda m: m.generate("ball"), "either the seconds"),
        (lambda m: m.generate([], 1.0), "at least one caption"),
        (lambda m: m.generate("ball", -1.0), "seconds must be"),
        (lambda m: m.generate("ball", 0.1, cfg_scale=-1), "cfg_scale must be"),
        (lambda m: m.generate("ball", 0.1, given=tiny.tokens(2)), "tokens are given"),
        (lambda m: m.sequences.collate([tiny.item(question="what?", answer="")]), "has no answer"),
        (lambda m: VideoLanguageModel.from_base(m.config), "language.base must name"),
        (lambda m: LanguageConfig(caption_dropout=1.0), "caption_dropout"),
        (lambda m: HeadConfig("gan"), "mse, cosine, flow, fsq"),
    ],
)
def test_bad_input_is_named(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_guidance_needs_caption_dropout():
    model = tiny.language_model(caption_dropout=0.0)
    with pytest.raises(ValueError, match="language.caption_dropout above 0"):
        model.generate("ball", 0.1, cfg_scale=2.0)


def test_mixed_batches_have_the_stated_ratio(model):
    questions = [tiny.item(5, i, question="how many?", answer=str(i)) for i in range(5)]
    captions = [tiny.item(5, i, caption="ball") for i in range(3)]
    mixed = Mixed(questions, captions, (2, 1))
    assert len(mixed) == 3 and [item["answer"] for item in mixed[2][:2]] == ["4", "0"]
    batch = model.sequences.collate([mixed[2], mixed[0]])
    assert len(batch["answers"]) == 4 and batch["order"].tolist() == [0, 1, 3, 4, 2, 5]
    assert (batch["roles"] == CAPTION).any(1).tolist() == [False] * 4 + [True] * 2
    assert [len(Mixed(questions, captions, ratio)) for ratio in ((1, 0), (0, 1))] == [5, 3]
    with pytest.raises(ValueError, match="not both 0"):
        Mixed(questions, captions, (0, 0))
