"""Variants that the paper compares: order of decoding, ways of compression, kinds of codebooks."""

from dataclasses import replace

import pytest
import stages
import tiny
import torch

from sweettok import SweetTok
from sweettok.layers.positions import sinusoids
from sweettok.pixels import to_uint8
from sweettok.priors.graph import Prior, WordGraph, all_words
from sweettok.stages.stage1 import Stage1Task
from sweettok.tokenizer.codebook import LearnedCodebook, LinearCodebook
from sweettok.tokenizer.layout import TokenLayout

FIRST_FRAME = {
    "decoder_order": "first_frame",
    "spatial_source": "first_frame",
    "temporal_source": "first_frame_residuals",
}
CASES = {
    "first frame": FIRST_FRAME,
    "slice positions": {"slice_positions": True, "patch_norm": False},
    "motion": {
        "spatial_source": "first_frame",
        "temporal_source": "tube_differences",
        "cross_positions": True,
    },
    "flat queries": {"compression": "flat_queries"},
    "linear": {"compression": "linear"},
    "learned": {"codebook": "learned", "lookup": "union"},
    "language": {"codebook": "language", "lookup": "union"},
    "learned, two modifiers and a head": {"codebook": "learned"},
}


def prior():
    """Vectors of one width, and a word in several lists."""
    spatial, temporal = tiny.word_graph("adj", 11, "noun", 13, 6), tiny.word_graph("adv", 7, "verb", 17, 6)
    heads = ("adj2", *temporal.heads[1:16], "noun3")
    return Prior(spatial, replace(temporal, modifiers=(*temporal.modifiers[:6], "adj4"), heads=heads))


def tokenizer(case, **changes):
    return tiny.fill(SweetTok(tiny.tokenizer_config(**CASES[case], **changes), prior()))


@pytest.fixture(scope="module")
def video():
    return tiny.clips(0, 1, 2)


@pytest.fixture(params=CASES)
def model(request):
    return tokenizer(request.param)


# ------------------------------------------------------------------------------------------------------ all variants


@torch.no_grad()
def test_decoding_the_ids_is_the_forward_pass(model, video):
    out = model.encode(video)
    per_query = 1 if model.config.lookup == "union" else 3
    assert out.ids.shape == (3, 20 * per_query) and out.grids == {"spatial": (2, 2), "temporal": (4, 4)}
    decoded = model.decode(out.ids)
    assert decoded.shape == video.shape and decoded.std() > 0.05 and torch.equal(decoded, model(video))
    assert torch.equal(out.ids, torch.cat([model.encode(clip[None]).ids for clip in video]))
    for segment in out.layout.segments:
        assert out.ids[:, segment.places].unique().numel() > 2, f"all {segment.name} words are alike"
        changed = out.ids.clone()
        changed[:, segment.start] = segment.vocab_start + (changed[:, segment.start] - segment.vocab_start + 5) % 7
        assert ((model.decode(changed) - decoded).abs().amax((1, 2, 3, 4)) > 1e-4).any()


@torch.no_grad()
def test_images_are_spatial_ids(model, video):
    images = video[:, :, :1]
    out = model.encode(images)
    assert torch.equal(out.ids, model.encode(images[:, :, 0]).ids) and out.layout == model.layout.spatial
    decoded = model.decode(out.ids)
    assert decoded.shape == images.shape and torch.equal(decoded, model(images))


@torch.no_grad()
def test_saved_and_loaded(model, video, tmp_path):
    model.save_pretrained(tmp_path)
    again = SweetTok.from_pretrained(tmp_path)
    assert again.config == model.config and again.layout == model.layout
    out = again.encode(video)
    assert torch.equal(out.ids, model.encode(video).ids) and out.words() == model.encode(video).words()
    assert torch.equal(again.decode(out.ids), model.decode(out.ids))
    release = tiny.tokenizer(tiny.tokenizer_config(lookup=model.config.lookup))
    same_ids = model.config.decoder_order == "first_frame"
    assert again.ids_hash() == model.ids_hash() and (model.ids_hash() != release.ids_hash() or same_ids)


def test_published_weights_do_not_fit(model):
    with pytest.raises(ValueError, match="published weights are of .*: use folders written by save_pretrained"):
        model.to_release()


@torch.no_grad()
def test_still_clips_have_equal_motion_words_with_tube_differences(video):
    """Whatever they show; the difference of the release's two embeddings depends on it."""
    still = video[:, :, :1].expand_as(video)
    for case, same in (("motion", True), ("slice positions", False)):
        model = tokenizer(case)
        temporal = model.encode(still).ids[:, model.layout.segments[2].start :]
        assert bool((temporal == temporal[:1]).all()) is same
        assert (model.encode(video).ids[:, model.layout.segments[2].start :] != temporal).any()


@torch.no_grad()
def test_cross_positions_tell_the_places_of_patches_and_queries(video):
    """Without them the decoder's cross-attention does not see where a spatial latent is."""
    for positions in (True, False):
        model = tokenizer("slice positions", cross_positions=positions)
        layer, grid = model.decoder.spatial, model.config.grid[1:]
        dim = model.config.block.dim
        x, context = torch.randn(1, 1, grid[0] * grid[1], dim), torch.randn(1, 4, dim)
        places = model.config.spatial_query_grid if positions else None
        contexts, moved = ([c] * len(layer.layers) for c in (context, context[:, [1, 0, 3, 2]]))
        out, other = (layer(x, grid, c, places)[-1] for c in (contexts, moved))
        assert torch.allclose(out, other, atol=1e-5) is not positions


@pytest.mark.parametrize("case", ["first frame", "motion", "flat queries", "linear", "learned", "language"])
def test_stage1_learns_a_clip(case):
    """From a warm start; the loss reaches every parameter."""
    torch.manual_seed(0)
    config = replace(tokenizer(case).config, pixel_path="argmax", graph_dropout=0.0)
    model, proxy, video = SweetTok(config, prior()), tiny.proxy(), tiny.clip()
    model.use_proxy(proxy)
    model.pixel_decoder.requires_grad_(False)
    model.warm_start(video)
    codes = proxy.encode(video)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    losses = []
    for step in range(30):
        loss = tiny.stage1_loss(model, video, codes)
        optimizer.zero_grad()
        loss.backward()
        if not step:
            dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
            assert not dead, f"no gradient for {dead}"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], f"{losses[0]:.3f} -> {losses[-1]:.3f}"


def test_both_stages_train(runs, tmp_path, fresh_accelerator):
    """By the command; the plan works without values."""
    settings = ["tokenizer.decoder_order=first_frame", "tokenizer.codebook=language", "tokenizer.lookup=union"]
    for stage, given in {"stage1": settings, "stage2": [f"tokenizer={tmp_path}/stage1/final"]}.items():
        command = [str(runs / f"{stage}.yaml"), *given, f"train.output_dir={tmp_path / stage}"]
        assert stages.command(["train", *command]) == 0
        stages.AcceleratorState._reset_state(reset_partial_state=True)
    assert stages.command(["plan", *command]) == 0
    first, second = (SweetTok.from_pretrained(tmp_path / stage / "final") for stage in ("stage1", "stage2"))
    assert first.ids_hash() == second.ids_hash()
    clip = to_uint8(tiny.clip(num_frames=5, height=32, width=32))
    assert torch.equal(second.decode(first.encode(clip).ids), second(clip))


def test_the_auxiliary_loss_needs_tokens_with_positions(runs):
    run = stages.config_of(runs, "stage1", "tokenizer.compression=flat_queries")
    with pytest.raises(ValueError, match="loss.auxiliary_weight needs tokens that belong to positions"):
        Stage1Task(run)


# --------------------------------------------------------------------------------------------------- order of decoding


@torch.no_grad()
def test_the_first_frame_is_decoded_from_the_spatial_tokens_alone(video):
    model = tokenizer("first frame")
    (spatial, temporal), decoder = model.codes(model.encode(video).ids), model.decoder
    logits = decoder(spatial, temporal, 6)
    assert logits.shape == (3, 32, 6, 4, 4)
    assert torch.equal(logits[:, :, :1], decoder(spatial, None, 1))
    other = decoder(spatial, temporal.flip(0), 6)
    assert torch.equal(other[:, :, :1], logits[:, :, :1])
    assert ((other - logits)[:, :, 1:].abs().amax((1, 3, 4))[::2] > 1e-3).all()
    assert (logits.diff(dim=2).abs().amax((1, 3, 4)) > 1e-3).all(), "some slices are alike"


@torch.no_grad()
def test_later_slices_are_the_first_one_repeated_and_motion_added(video):
    model = tokenizer("first frame")
    codes, decoder = model.codes(model.encode(video).ids), model.decoder
    appearance = decoder.spatial_latent((decoder.spatial_in(codes[0]) + decoder.spatial_positions)[:, None], (2, 2))
    x = (decoder.mask_token + decoder.positions).expand(3, 1, -1, -1)
    first = decoder.spatial(x, (4, 4), [layer.squeeze(1) for layer in appearance])[-1]
    motion = decoder.temporal_latent(decoder.temporal_in(codes[1]) + decoder.temporal_positions)
    later = first.repeat(1, 2, 1, 1) + sinusoids(2, 24, first.device)[None, :, None]
    for layer, block, latent in zip(decoder.temporal.layers, decoder.motion, motion, strict=True):
        later = later + layer.peg(later.unflatten(2, (4, 4))).flatten(2, 3)
        rows = later.transpose(1, 2).flatten(0, 1)
        rows = rows + layer.self_attn(rows)
        later = block((rows + layer.ff(rows)).unflatten(0, (3, 16)).transpose(1, 2), latent)
    assert tiny.relative_error(decoder(*codes, 3), decoder.logits(torch.cat((first, later), 1))) < 1e-6


@torch.no_grad()
def test_first_frame_decodes_clips_of_many_lengths():
    model = tokenizer("first frame")
    for num_frames in (5, 13):
        clip = tiny.clip(num_frames=num_frames)
        assert torch.equal(model.decode(model.encode(clip).ids, num_frames=num_frames), model(clip))


# -------------------------------------------------------------------------------------------------------- compression


@torch.no_grad()
def test_every_flat_query_sees_every_patch(video):
    model, query = tokenizer("flat queries"), 0
    latents = torch.cat(model.encoder(video), dim=1)
    for frame in (0, 3, 8):
        for y, x in ((0, 0), (15, 15)):
            changed = video.clone()
            changed[:, :, frame, y, x] *= -1
            moved = (torch.cat(model.encoder(changed), dim=1) - latents).abs().amax((0, 2))
            assert (moved > 1e-7).all(), f"{int((moved <= 1e-7).sum())} queries do not see frame {frame}, {y}, {x}"
    back = video[:, :, [0, *range(8, 0, -1)]]
    assert (torch.cat(model.encoder(back), dim=1)[:, query] - latents[:, query]).abs().max() > 1e-3, "time is unseen"


@torch.no_grad()
def test_linear_tokens_are_rectangles_of_the_first_slice_and_times_of_the_later_ones():
    """Without the layers between: each token is made of its own patches, and decoded to their places."""
    model = tokenizer("linear")
    encoder, decoder = model.encoder, model.decoder
    for part in (encoder.spatial, encoder.temporal, decoder.spatial, decoder.temporal):
        part.forward = lambda x, grid: [x]
    for name in ("spatial_out", "temporal_out"):
        setattr(encoder, name, torch.nn.Identity())
    for name in ("spatial_in", "temporal_in"):
        setattr(decoder, name, torch.nn.Identity())
    patches = torch.from_numpy(tiny.normal("patches", (2, 3, 4, 4, 24))).float()
    encoder.patches.forward = lambda clip: patches
    spatial, temporal = encoder.latents(tiny.clips(0, 1))
    first = patches[:, 0].unflatten(2, (2, 2)).unflatten(1, (2, 2))  # (B, rows, 2, columns, 2, D)
    for row in range(2):
        for column in range(2):
            block = first[:, row, :, column].flatten(1)
            torch.testing.assert_close(spatial[:, 2 * row + column], encoder.down_space(block))
    for place in range(16):
        times = patches[:, 1:, place // 4, place % 4].flatten(1)
        torch.testing.assert_close(temporal[:, place], encoder.down_time(times))

    seen = []
    decoder.logits = seen.append
    decoder(spatial, temporal, 3)
    grid = (seen[0] - decoder.positions).unflatten(2, (4, 4))
    for row in range(2):
        for column in range(2):
            block = grid[:, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
            torch.testing.assert_close(block, decoder.up_space(spatial[:, 2 * row + column]))
    times = decoder.up_time(temporal).unflatten(2, (2, 24)).unflatten(1, (4, 4))
    torch.testing.assert_close(grid[:, 1:], times.movedim(3, 1))


def test_what_does_not_fit_is_refused(video):
    for changes, message in {
        ("linear", "spatial_query_grid", (2, 3)): "2x3 must divide the latent grid, which is 4x4",
        ("linear", "decoder_order", "first_frame"): "decoder_order is a setting of .* dqae: leave it out with linear",
        ("flat_queries", "spatial_source", "first_frame"): "spatial_source is a setting .* leave it out with flat_quer",
        ("pooling", "lookup", "union"): "compression must be one of dqae, flat_queries, linear; got 'pooling'",
    }.items():
        compression, name, value = changes
        with pytest.raises(ValueError, match=message):
            tiny.tokenizer_config(compression=compression, encoder_spatial="ttt", **{name: value})
    with pytest.raises(ValueError, match="linear takes clips of 9 frames only; got 5"):
        tokenizer("linear").encode(video[:, :, :5])
    for case in ("linear", "flat queries"):
        with pytest.raises(ValueError, match="weights are of one size only"):
            tokenizer(case).at_size(16, 24)
    assert tokenizer("first frame").at_size(16, 24).encode(tiny.clip(width=24)).ids.shape == (1, 84)


# ----------------------------------------------------------------------------------------------------------- codebooks


def test_all_words_of_a_prior():
    graphs, words = prior(), all_words(prior())
    assert words.modifiers == (*graphs.spatial.modifiers, *graphs.temporal.modifiers[:6]), "adj4 is listed once"
    assert words.heads == (*graphs.spatial.heads, *graphs.temporal.heads[1:16]), "adj2 and noun3 are listed once"
    assert words.edges.numel() == 0
    for graph in (graphs.temporal, graphs.spatial):  # the spatial vector of a word comes first
        for word, vector in zip(graph.words, graph.vectors, strict=True):
            if graph is graphs.spatial or word not in graphs.spatial.words:
                assert torch.equal(words.vectors[words.words.index(word)], vector)
    with pytest.raises(ValueError, match=r"vectors of one width, got 6 \(spatial\) and 5 \(temporal\)"):
        all_words(tiny.prior())


@torch.no_grad()
def test_one_language_codebook_for_both_branches(video):
    model = tokenizer("language")
    assert (
        model.layout == TokenLayout(4, 16, 17, 28, 17, 28, lookup="union")
        and model.vocabulary[0] == model.vocabulary[1]
    )
    codebook = model.spatial_quantizer.codebook
    assert model.temporal_quantizer.codebook is codebook
    assert torch.equal(codebook(), codebook.vectors @ codebook.projection.weight.T + codebook.projection.bias)
    names = [name for name in model.state_dict() if "quantizer" in name]
    assert names and all(name.startswith("spatial_quantizer.codebook.") for name in names)
    local = model.layout.to_local(model.encode(video).ids)
    assert (local[:, :4] >= 24).any() or (local[:, :4] >= 11).any()
    again = SweetTok(model.config, model.prior)
    assert again.vocabulary == model.vocabulary, "the words of a language codebook's prior are complete"
    before = model.encode(video).ids
    codebook.projection.weight.neg_()
    after = model.encode(video).ids
    assert (before[:, :4] != after[:, :4]).any() and (before[:, 4:] != after[:, 4:]).any()


def test_one_list_of_words_gives_one_word_per_query():
    with pytest.raises(ValueError, match="codebook language has one list of words, .* set tokenizer.lookup to union"):
        tiny.tokenizer_config(codebook="language")
    with pytest.raises(ValueError, match="codebook language has the words of both branches: give both word graphs"):
        SweetTok(tiny.union_config(codebook="language"), prior().spatial)


@torch.no_grad()
def test_learned_codes_do_not_depend_on_the_words(video):
    model = tokenizer("learned")
    other = SweetTok(model.config, Prior(*(replace(graph, vectors=-graph.vectors) for graph in vars(prior()).values())))
    tables = {name: value for name, value in model.state_dict().items() if not name.endswith("vectors")}
    other.load_state_dict({**other.state_dict(), **tables})
    assert torch.equal(model.encode(video).ids, other.eval().encode(video).ids)
    codebook = model.spatial_quantizer.codebook
    assert torch.equal(codebook(), codebook.table) and not codebook().requires_grad


@torch.no_grad()
@pytest.mark.parametrize("kind", [LinearCodebook, LearnedCodebook])
@pytest.mark.parametrize("sizes", [(24,), (11, 13)])
def test_codes_start_centred_over_the_lists_that_are_searched(kind, sizes):
    codebook = kind(prior().spatial, hidden=10, out_dim=8, dropout=0.5)
    codebook.start_spread(torch.tensor(0.25), sizes)
    tables = codebook().split(sizes)
    torch.testing.assert_close(sum(table.mean(0) for table in tables), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(sum(table.std(0) for table in tables) / len(tables), torch.full((8,), 0.25))


def test_kept_codes_follow_the_table():
    codebook = LearnedCodebook(prior().spatial, hidden=10, out_dim=8, dropout=0.5).eval()
    with torch.no_grad():
        first = codebook()
        assert codebook() is first
        codebook.table.add_(1)
        torch.testing.assert_close(codebook(), first + 1)
    assert codebook().requires_grad


def test_vectors_that_are_not_finite_are_refused():
    graph = prior().spatial
    with pytest.raises(ValueError, match="vectors must be finite"):
        WordGraph(
            graph.modifiers,
            graph.heads,
            graph.vectors.clone().index_fill_(0, torch.tensor([3]), float("nan")),
            graph.edges,
        )
