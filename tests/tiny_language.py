"""Tiny random language models of the real classes of transformers, and data for them. Nothing is downloaded."""

import torch

from sweettok.vtok.language import VideoLanguageModel
from sweettok.vtok.language_config import HeadConfig, LanguageConfig, ScratchConfig
from sweettok.vtok.output import VisualTokens
from sweettok.vtok.text import train_tokenizer

DIM, WIDTH, KEY = 12, 32, 4
TEXTS = ("a red ball moves left", "two squares", "what moves?", "how many?", "ball", "two")
SCRATCH = ScratchConfig(dim=WIDTH, num_layers=3, num_heads=2, vocab_size=280, max_length=96)
FAST_HEAD = {"flow_width": 16, "flow_steps": 3, "flow_repeats": 2, "fsq_levels": (3, 4), "fsq_codes": 2}
TEXT_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}


def config(head="mse", **changes):
    sizes = {"visual_dim": DIM, "key_tokens": KEY, "scratch": SCRATCH, "head": HeadConfig(head, **FAST_HEAD)}
    return LanguageConfig(**{**sizes, **changes})


def text_model(name, vocab_size):
    """A random LlamaForCausalLM, LlavaNextForConditionalGeneration or Qwen2_5_VLForConditionalGeneration."""
    import transformers as hf

    sizes = {**TEXT_SIZES, "vocab_size": vocab_size}
    if name == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes))
    if name == "llava_next":
        vision = hf.CLIPVisionConfig(
            hidden_size=DIM,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
        text = hf.LlamaConfig(**sizes)
        settings = hf.LlavaNextConfig(
            vision_config=vision, text_config=text, image_token_index=vocab_size - 1, image_grid_pinpoints=[[16, 16]]
        )
        return hf.LlavaNextForConditionalGeneration(settings)
    rope = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    settings = hf.Qwen2_5_VLConfig(text_config={**sizes, "rope_scaling": rope}, vision_config=vision)
    return hf.Qwen2_5_VLForConditionalGeneration(settings)


def language_model(name="scratch", head="mse", seed=0, **changes):
    """A VideoLanguageModel around the model `name`, with random weights everywhere."""
    torch.manual_seed(seed)
    if name == "scratch":
        model = VideoLanguageModel.from_scratch(config(head, **changes), TEXTS)
    else:
        tokenizer = train_tokenizer(TEXTS, 280)
        model = VideoLanguageModel(config(head, **changes), text_model(name, len(tokenizer)), tokenizer)
    for param in model.parameters():  # away from zeros, where parts would be without effect
        param.data.add_(0.05 * torch.randn_like(param))
    model.fit_statistics([tokens(3, 9) for _ in range(2)])
    return model.eval()


def tokens(batch=2, length=9, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    kinds = (torch.arange(length) >= KEY).long()
    values = torch.randn(batch, length, DIM, generator=generator) * (1 - 0.7 * kinds[:, None]) + 0.5
    times = (torch.arange(length) - KEY + 1).clamp_min(0).expand(batch, -1) / 6
    return VisualTokens(values=values, times=times, kinds=kinds, key_frame=torch.zeros(batch, dtype=torch.long))


def item(length=9, seed=0, **text):
    clip = tokens(1, length, seed)
    return {"values": clip.values[0], "kinds": clip.kinds, **text}


def batch(model):
    """Two questions and two captions, of different lengths, in mixed order."""
    return model.sequences.collate(
        [
            item(9, 0, caption="a red ball moves left"),
            item(7, 1, question="what moves?", answer="ball"),
            [item(9, 2, question="how many?", answer="two squares"), item(6, 3, caption="two squares")],
        ]
    )
