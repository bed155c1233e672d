"""The part of a transformers model that VTok uses: embeddings, decoder layers and output layer, fed with embeddings.

A vision tower is left out. Letters: B sequences, N positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sweettok.vtok.language_config import LoraConfig, ScratchConfig
from sweettok.vtok.text import require_transformers


class Backbone(nn.Module):
    """Any causal model of transformers, or the text part of a model of images and text.

    Args:
        model: such as LlamaForCausalLM, LlavaNextForConditionalGeneration, Qwen2_5_VLForConditionalGeneration.

    Raises ValueError for models without a decoder that is fed with embeddings, or without an output layer.
    """

    def __init__(self, model: Any):
        super().__init__()
        body, head = model.get_decoder(), model.get_output_embeddings()
        if head is None or not {"inputs_embeds", "position_ids", "cache"} <= set(signature(body.forward).parameters):
            raise ValueError(f"{type(model).__name__} is no causal language model that reads embeddings")
        self.body, self.head = body, head
        self.architecture = {"class": type(model).__name__, "config": model.config.to_dict()}
        self.width: int = body.config.hidden_size
        self.num_layers: int = body.config.num_hidden_layers
        self.max_length: int | None = getattr(body.config, "max_position_embeddings", None)
        rope = getattr(body.config, "rope_parameters", None) or getattr(body.config, "rope_scaling", None) or {}
        self.reads_grids = "mrope_section" in rope
        self.tied = head.weight is self.embeddings.weight

    @property
    def embeddings(self) -> nn.Module:
        return self.body.get_input_embeddings()

    def forward(
        self, inputs: Tensor, mask: Tensor, positions: Tensor, cache: Any = None, layer: int = -1
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, N, D) -> last states, normalised, and states of `layer`, (B, N, D) both.

        Args:
            mask: (B, cached + N) bool, positions that may be attended to.
            positions: (B, N) or, of models with positions in time, height and width, (3, B, N).
            cache: of earlier positions, extended in place.
            layer: index of transformers' `hidden_states`, negative.
        """
        more = {"cache": cache, "use_cache": cache is not None}
        if layer != -1:
            more["output_hidden_states"] = True
        inputs = inputs.to(self.embeddings.weight.dtype)
        if cache is None:  # transformers would wait for the device, to see whether the mask is needed
            causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
            itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
            mask = causal & (mask.bool()[:, None, None] | itself)  # padding sees itself: a row of nothing gives NaN
        found = self.body(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, **more)
        last = found.last_hidden_state
        return last, last if layer == -1 else found.hidden_states[layer]

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> float32 (..., vocabulary)."""
        return self.head(states.to(self.head.weight.dtype)).float()

    def new_cache(self, length: int) -> Any:
        """A cache for up to `length` positions."""
        from transformers import StaticCache

        return StaticCache(config=self.body.config, max_cache_len=length)

    def recompute(self) -> None:
        """Compute activations of the layers again in the backward pass, which saves memory."""
        kwargs = {"use_reentrant": False}
        if hasattr(self.body, "activation_checkpointing_enable"):  # transformers 5.24
            self.body.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        else:
            self.body.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)

    def add_lora(self, config: LoraConfig) -> None:
        """Add adapters to the linear layers of the decoder, in place; only they are trained from then on."""
        try:
            from peft import LoraConfig as Settings
            from peft import inject_adapter_in_model
        except ImportError as error:
            raise ImportError("language.lora needs peft: pip install 'sweettok[vtok]'") from error
        sizes = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
        inject_adapter_in_model(Settings(target_modules="all-linear", **sizes), self.body)
        self.head.requires_grad_(False)


def scratch_model(config: ScratchConfig, tokenizer: Any) -> Any:
    """A small LlamaForCausalLM with random weights."""
    require_transformers()
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.dim,
        intermediate_size=4 * config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(settings)


def load_model(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model and its tokenizer from a folder or a repository of the Hub; no code of it is run.

    Raises FileNotFoundError if there is none, ValueError if it is of another kind, or lacks weights or tokenizer.
    """
    require_transformers()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise FileNotFoundError(f"{name} holds no config.json: give the folder of a language model of transformers")
    safe = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name, **safe)
    except OSError as error:
        raise FileNotFoundError(f"there is no language model {name}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise ValueError(f"{name} is no model of transformers: {str(error).splitlines()[0]}") from error
    several = hasattr(config, "vision_config")
    loader = AutoModelForImageTextToText if several else AutoModelForCausalLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **safe)
        return loader.from_pretrained(name, dtype=dtype, use_safetensors=True, **safe), tokenizer
    except (OSError, ValueError) as error:
        expected = "a causal language model with safetensors weights and a tokenizer"
        raise ValueError(f"{name} is not {expected}: {str(error).splitlines()[0]}") from error


def build_model(architecture: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model with random weights from `Backbone.architecture`."""
    require_transformers()
    import transformers

    cls = getattr(transformers, architecture["class"], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ValueError(f"transformers {transformers.__version__} has no model {architecture['class']!r}")
    with default_dtype(dtype):
        return cls(cls.config_class.from_dict(architecture["config"]))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, new weights have this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Projector(nn.Sequential):
    """Two linear layers with a GELU between, from visual tokens (..., C) to embeddings (..., D).

    They start as those of the model's own projector as far as their sizes agree. Otherwise they are random, and
    outputs are about as large as text embeddings.

    Args:
        own: a projector with `linear_1` and `linear_2`, or None.
        embeddings: weights (vocabulary, D) of the text.
    """

    def __init__(self, dim: int, embeddings: Tensor, own: nn.Module | None = None):
        width = embeddings.shape[1]
        super().__init__(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        theirs = [getattr(own, f"linear_{i}", None) for i in (1, 2)]
        with torch.no_grad():
            size = embeddings.detach().float().square().mean().sqrt()
            self[2].weight.mul_(size / self(torch.randn(64, dim)).square().mean().sqrt())
            self[2].bias.zero_()
            self.copied = all(_copy(*pair) for pair in zip((self[0], self[2]), theirs, strict=True))


@torch.no_grad()
def _copy(layer: nn.Linear, other: nn.Module | None) -> bool:
    """Copy the weights if the sizes agree; whether they do."""
    if other is None or other.weight.shape != layer.weight.shape:
        return False
    layer.weight.copy_(other.weight)
    layer.bias.zero_() if other.bias is None else layer.bias.copy_(other.bias)
    return True
