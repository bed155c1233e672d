"""Video decoders of diffusers, on tiny random instances of the real transformers, VAEs, schedulers and pipelines."""

import types

import pytest
import torch

from sweettok.data.writer import write_video
from sweettok.pixels import to_uint8
from sweettok.vtok.adapter import AdaptedDecoder, StateAdapter, StateAdapterConfig
from sweettok.vtok.frozen import valid_first
from sweettok.vtok.hunyuan import Hunyuan15Decoder, HunyuanDecoder
from sweettok.vtok.wan import TOKENS, WanDecoder

diffusers = pytest.importorskip("diffusers")
FRAMES, SIZE, WIDTH = 5, 32, 16


def hunyuan():
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.HunyuanVideoPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **parts)


def hunyuan15():
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=12,
        image_embed_dim=6,
        rope_axes_dim=(2, 2, 4),
        task_type="t2v",
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=6.0)
    return diffusers.HunyuanVideo15Pipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, guider=guider, **parts
    )


def wan_transformer():
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )


def wan(experts=1, **options):
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.5, -0.5, 0.0, 1.0],
        latents_std=[2.0, 1.0, 0.5, 3.0],
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    second = {"transformer_2": wan_transformer(), "boundary_ratio": 0.875} if experts == 2 else {}
    parts = {"transformer": wan_transformer(), "vae": vae, "scheduler": scheduler} | second | options
    return diffusers.WanPipeline(text_encoder=None, tokenizer=None, **parts)


MAKERS = {
    "hunyuan": lambda: HunyuanDecoder(hunyuan(), gradient_checkpointing=True),
    "hunyuan15": lambda: Hunyuan15Decoder(hunyuan15()),
    "wan": lambda: WanDecoder(wan()),
    "wan two experts": lambda: WanDecoder(wan(2)),
    "wan timestep of each token": lambda: WanDecoder(wan(expand_timesteps=True)),
}


@pytest.fixture(scope="module", params=MAKERS)
def decoder(request):
    torch.manual_seed(0)
    return MAKERS[request.param]()


def a_video(count=2):
    return torch.rand(count, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) - 0.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_training_step(decoder):
    states = torch.randn(4, 6, WIDTH, generator=generator(), requires_grad=True)
    decoder.train()
    loss = decoder.loss(a_video(4), states, generator=generator())
    loss.backward()
    assert not any(module.training for module in decoder.modules())
    assert loss.isfinite() and states.grad.isfinite().all() and states.grad.abs().sum(2).min() > 0
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_loss_is_zero_for_the_exact_velocity(decoder, monkeypatch):
    clean, levels_seen = decoder.latents(a_video(), generator()), []

    def exact(noisy, levels, inputs):
        levels_seen.append(levels)
        return (noisy - clean) / levels.view(-1, 1, 1, 1, 1)

    monkeypatch.setattr(decoder, "velocity", exact)
    assert decoder.loss(a_video(), torch.randn(2, 6, WIDTH), generator=generator()) < 1e-6


def test_masked_states_are_ignored(decoder):
    states, video = torch.randn(2, 6, WIDTH), a_video()
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]])
    other = torch.where(mask[..., None] == 1, states, torch.full_like(states, 30.0))
    shorter = states[mask == 1].view(2, 4, WIDTH)
    masked = decoder.loss(video, states, mask, generator())
    torch.testing.assert_close(masked, decoder.loss(video, other, mask, generator()))
    torch.testing.assert_close(masked, decoder.loss(video, shorter, None, generator()))
    assert (masked - decoder.loss(video, other, None, generator())).abs() > 1e-6


def test_sampled_video_file(decoder, tmp_path):
    states = torch.randn(2, 6, WIDTH, generator=generator())
    together = decoder.sample(states, FRAMES, SIZE, seed=3, steps=2)
    assert together.shape == (2, 3, FRAMES, SIZE, SIZE) and together.abs().max() <= 0.5
    alone = decoder.sample(states[1:], FRAMES, SIZE, seed=3, indices=[1], steps=2)
    torch.testing.assert_close(alone, together[1:], atol=1e-3, rtol=0)
    assert (together - decoder.sample(states, FRAMES, SIZE, seed=4, steps=2)).abs().max() > 1e-3
    guided = decoder.sample(states[:1], FRAMES, SIZE, seed=3, steps=2, cfg_scale=3.0, negative=-states[:1, :3])
    assert (together[:1] - guided).abs().max() > 1e-6
    write_video(tmp_path / "sample.mp4", to_uint8(together[0]), fps=24)
    assert (tmp_path / "sample.mp4").stat().st_size > 500


def test_pipeline_and_loss_agree(decoder, monkeypatch):
    """One Euler step of the pipeline is the loss's velocity at level 1."""
    if isinstance(decoder, WanDecoder):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        monkeypatch.setattr(decoder.pipeline, "scheduler", scheduler)
    states, seen = torch.randn(1, 6, WIDTH, generator=generator()), {}

    def decode(latents, **_):
        seen["latents"] = latents
        return (torch.zeros(1, 3, FRAMES, SIZE, SIZE),)

    monkeypatch.setattr(decoder.vae, "decode", decode)
    if isinstance(decoder, HunyuanDecoder):
        monkeypatch.setattr(decoder, "train_guidance", decoder.guidance)
    decoder.sample(states, FRAMES, SIZE, steps=1)
    from sweettok.seeds import sample_noise

    shape = seen["latents"].shape[1:]
    noise = sample_noise(shape, 0, [0])
    inputs = decoder.condition(*valid_first(states, None))
    clean = noise - decoder.velocity(noise, torch.ones(1), inputs)
    torch.testing.assert_close(decoder.normalize(seen["latents"]), clean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("frames", "size", "message"),
    [
        (6, 32, r"4k \+ 1 frames, got 6: the nearest is 5"),
        (5, (32, 40), "multiples of 16, got 32 x 40: the nearest is 32 x 32"),
    ],
)
def test_sizes(decoder, frames, size, message):
    states = torch.zeros(1, 3, WIDTH)
    with pytest.raises(ValueError, match=message):
        decoder.sample(states, frames, size)
    height, width = (size, size) if isinstance(size, int) else size
    with pytest.raises(ValueError, match=message):
        decoder.loss(torch.zeros(1, 3, frames, height, width), states)


def test_conditions(decoder):
    with pytest.raises(ValueError, match=r"states must have shape \(batch, tokens, 16\), got \(1, 3, 15\)"):
        decoder.sample(torch.zeros(1, 3, 15), FRAMES, SIZE)
    with pytest.raises(ValueError, match="cfg_scale 2.0 needs `negative`"):
        decoder.sample(torch.zeros(1, 3, 16), FRAMES, SIZE, cfg_scale=2.0)


def test_valid_first():
    states = torch.arange(1.0, 5).view(1, 4, 1)
    moved, mask = valid_first(states, torch.tensor([[False, True, False, True]]))
    assert moved.flatten().tolist() == [2, 4, 0, 0] and mask.tolist() == [[1, 1, 0, 0]]


# ---------------------------------------------------------------------------------------------- of single models


def test_hunyuan_pooled_text():
    decoder = MAKERS["hunyuan"]()
    states, video = torch.randn(2, 6, WIDTH), a_video()
    plain = decoder.loss(video, states, generator=generator())
    torch.testing.assert_close(plain, decoder.loss(video, states, generator=generator(), pooled=torch.zeros(2, 8)))
    assert plain != decoder.loss(video, states, generator=generator(), pooled=torch.ones(2, 8))
    with pytest.raises(ValueError, match=r"pooled text must have shape \(2, 8\), got \(2, 9\)"):
        decoder.loss(video, states, pooled=torch.ones(2, 9))
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=20, eos_token_id=2, **sizes)).eval()

    def tokenizer(prompts, **_):
        return types.SimpleNamespace(input_ids=torch.tensor([[1, 3 + len(text), 2] for text in prompts]))

    decoder.pipeline.register_modules(text_encoder_2=clip, tokenizer_2=tokenizer)
    decoder = HunyuanDecoder(decoder.pipeline)
    assert decoder.pooled(["a", "red"]).shape == (2, 8)
    assert clip in decoder.modules() and not any(param.requires_grad for param in clip.parameters())  # moves with it


def test_hunyuan_settings():
    decoder = MAKERS["hunyuan"]()
    assert decoder.shift == 7.0 and decoder.state_layer == -3
    assert decoder.condition(torch.zeros(1, 2, WIDTH), torch.ones(1, 2))["guidance"].item() == 1000
    assert decoder.guidance_options(1.0) == {"guidance_scale": 6.0, "true_cfg_scale": 1.0}
    torch.testing.assert_close(decoder.normalize(torch.ones(1)), torch.tensor([0.476986]))


def test_wan_pads_with_zeros():
    decoder = MAKERS["wan"]()
    padded = decoder.condition(torch.ones(1, 3, WIDTH), torch.ones(1, 3))["encoder_hidden_states"]
    assert padded.shape == (1, TOKENS, WIDTH) and padded.sum() == 3 * WIDTH
    assert decoder.shift == 3.0
    with pytest.raises(ValueError, match="up to 512 states, got 513"):
        decoder.sample(torch.zeros(1, 513, WIDTH), FRAMES, SIZE)
    latents = torch.tensor([2.5, 0.5, 1.0, 4.0]).view(1, 4, 1, 1, 1)
    assert decoder.normalize(latents).flatten().tolist() == [1.0, 1.0, 2.0, 1.0]


def test_wan_experts_have_their_levels(monkeypatch):
    decoder, seen = MAKERS["wan two experts"](), {}
    for name in ("transformer", "transformer_2"):
        expert = getattr(decoder, name)

        def forward(hidden_states, timestep, name=name, **_):
            seen[name] = timestep
            return (hidden_states + (10 if name == "transformer" else 20),)

        monkeypatch.setattr(expert, "forward", forward)
    noisy, levels = torch.zeros(3, 4, 2, 4, 4), torch.tensor([0.5, 0.9, 0.875])
    out = decoder.velocity(noisy, levels, decoder.condition(torch.zeros(3, 2, WIDTH), torch.ones(3, 2)))
    assert out[:, 0, 0, 0, 0].tolist() == [20, 10, 10]
    torch.testing.assert_close(seen["transformer"], torch.tensor([900.0, 875.0]))
    assert seen["transformer_2"].tolist() == [500]


def test_adapter(tmp_path):
    adapter = StateAdapter(StateAdapterConfig(state_dim=10, out_dim=WIDTH, hidden_dim=12, rms=0.2))
    decoder = AdaptedDecoder(adapter, MAKERS["wan"]()).train()
    assert adapter.training and not decoder.decoder.vae.training
    states = torch.randn(2, 6, 10, requires_grad=True)
    torch.testing.assert_close(adapter(states).square().mean().sqrt(), torch.tensor(0.2), atol=1e-3, rtol=0)
    decoder.loss(a_video(), states).backward()
    assert states.grad.abs().sum(2).min() > 0 and all(p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert decoder.sample(states, FRAMES, SIZE, steps=1, cfg_scale=2.0, negative=states[:, :2]).shape == (
        2,
        3,
        5,
        32,
        32,
    )
    adapter.save_pretrained(tmp_path)
    torch.testing.assert_close(StateAdapter.from_pretrained(tmp_path)(states), adapter(states))
    with pytest.raises(ValueError, match="got 10 and 16"):
        AdaptedDecoder(StateAdapter(StateAdapterConfig(10, 10, 12)), MAKERS["wan"]())


def test_from_pretrained(tmp_path):
    wan(2).save_pretrained(tmp_path)
    decoder = WanDecoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert len(decoder.experts) == 2 and decoder.transformer.dtype == torch.bfloat16
    states = torch.randn(2, 3, WIDTH, requires_grad=True)
    decoder.loss(a_video(), states).backward()
    assert states.grad.dtype == torch.float32 and states.grad.abs().sum() > 0
    assert decoder.sample(states.detach(), FRAMES, SIZE, steps=1).dtype == torch.float32
