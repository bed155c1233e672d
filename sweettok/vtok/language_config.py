"""Settings of the language model that reads and writes visual tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from sweettok.config import choice, positive, whole

HEADS = ("mse", "cosine", "flow", "fsq")


@dataclass(frozen=True)
class TemplateConfig:
    """Text around the parts of a sequence; special tokens of the model's tokenizer are read as such."""

    before_video: str = "<s>"  # of a question: before the visual tokens
    after_video: str = ""  # between visual tokens and question
    after_question: str = "<answer>"  # between question and answer
    after_answer: str = "</s>"  # ends an answer
    before_prompt: str = "<s>"  # of generation: before the caption
    after_prompt: str = ""  # between caption and visual tokens


LLAMA3_USER = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, and assist the user with a variety of "
    "tasks using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
)
LLAMA3_ASSISTANT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
QWEN_USER = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
QWEN_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"

TEMPLATES = {
    "plain": TemplateConfig(),
    "llama3": TemplateConfig(LLAMA3_USER, "\n", LLAMA3_ASSISTANT, "<|eot_id|>", LLAMA3_USER, LLAMA3_ASSISTANT),
    "qwen": TemplateConfig(
        QWEN_USER + "<|vision_start|>",
        "<|vision_end|>",
        QWEN_ASSISTANT,
        "<|im_end|>",
        QWEN_USER,
        QWEN_ASSISTANT + "<|vision_start|>",
    ),
}


@dataclass(frozen=True)
class ScratchConfig:
    """A Llama from random weights, with a byte-level BPE tokenizer trained on the captions, questions and answers."""

    dim: int = 128  # width
    num_layers: int = 4  # transformer blocks
    num_heads: int = 4  # attention heads; must divide `dim`
    vocab_size: int = 512  # most ids of the tokenizer: 4 special tokens, 256 bytes, and frequent words and their parts
    max_length: int = 512  # longest sequence, of text and visual tokens

    def __post_init__(self) -> None:
        whole(self, "language.scratch", 1, "dim", "num_layers", "num_heads", "max_length")
        whole(self, "language.scratch", 260, "vocab_size")
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"language.scratch.dim {self.dim} does not divide into {self.num_heads} heads of even width"
            )


@dataclass(frozen=True)
class HeadConfig:
    """The head that predicts the next visual token, and its loss L_visLM."""

    # "mse": regression (paper, as far as known); "cosine": of the direction only; "flow": a small flow-matching network
    # for each token, which draws from a distribution; "fsq": cross-entropy of codes of a scalar quantiser.
    kind: str = "mse"
    flow_width: int = 256  # flow: width of the network
    flow_layers: int = 3  # flow: its blocks
    flow_repeats: int = 4  # flow: noise levels for each token in a training step
    flow_steps: int = 16  # flow: Euler steps of a draw
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)  # fsq: levels of the numbers of a code
    fsq_codes: int = 8  # fsq: codes of a token, each with a cross-entropy of its own

    def __post_init__(self) -> None:
        choice("language.head.kind", self.kind, HEADS)
        whole(self, "language.head", 1, "flow_width", "flow_layers", "flow_repeats", "flow_steps", "fsq_codes")
        object.__setattr__(self, "fsq_levels", tuple(self.fsq_levels))
        if not self.fsq_levels or min(self.fsq_levels) < 2:
            raise ValueError(f"language.head.fsq_levels must be whole numbers of at least 2; got {self.fsq_levels}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of the linear layers of the language model (peft); its own weights then stay as they are."""

    rank: int = 0  # of the adapters; 0: none, all weights are trained
    alpha: float = 32.0  # adapters are scaled by alpha / rank
    dropout: float = 0.0  # of the input of adapters

    def __post_init__(self) -> None:
        whole(self, "language.lora", 0, "rank")
        positive(self, "language.lora", "alpha")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"language.lora.dropout must be in [0, 1); got {self.dropout}")


@dataclass(frozen=True)
class LanguageConfig:
    """A causal language model with visual tokens as input and output."""

    visual_dim: int = 1024  # C, width of the visual tokens
    key_tokens: int = 16  # tokens of the key frame of a generated video
    tokens_per_second: float = 6.0  # its motion tokens for each second; 0: all tokens are of key frames
    # Language model of transformers: a folder, or a repository of the Hub; null: `scratch`.
    base: str | None = None
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    dtype: str = "float32"  # of the language model: "float32" or "bfloat16"
    freeze: bool = False  # train the projector and the head only
    lora: LoraConfig = field(default_factory=LoraConfig)
    # Positions of visual tokens: "text", one after another; "grid", for models with positions in time, height and width
    # (Qwen2.5-VL): key-frame tokens are on a square grid, and each frame is one step in time.
    positions: str = "text"
    gradient_checkpointing: bool = False  # compute activations again in the backward pass, which saves memory
    template: TemplateConfig = field(default_factory=TemplateConfig)
    # Projector: the input is standardised like the targets. For projectors that start at random; not for the model's
    # own, which expects features as they are.
    standardise_inputs: bool = False
    # A trained MLP, zero at the start, added to motion tokens before the projector: the paper's g as a part of the
    # language model. Targets stay in front of it, so they are of the frozen tokenizer.
    motion_mlp: bool = False
    head: HeadConfig = field(default_factory=HeadConfig)
    visual_weight: float = 1.0  # lambda_visLM, weight of the loss of the visual tokens
    decoder_weight: float = 1.0  # lambda_dec, weight of the loss of the video decoder
    # Hidden states that the decoder is given: an index of transformers' `hidden_states`; -1: the last, normalised.
    state_layer: int = -1
    caption_dropout: float = 0.1  # share of training captions that are left out, which guidance needs
    detach_generation: bool = False  # no gradient through the visual inputs of generation to projector and tokenizer

    def __post_init__(self) -> None:
        whole(self, "language", 1, "visual_dim", "key_tokens")
        if not self.tokens_per_second >= 0:
            raise ValueError(f"language.tokens_per_second must be at least 0; got {self.tokens_per_second}")
        choice("language.dtype", self.dtype, ("float32", "bfloat16"))
        choice("language.positions", self.positions, ("text", "grid"))
        if self.freeze and self.lora.rank:
            raise ValueError("language.freeze leaves no adapters to train: set language.lora.rank=0, or freeze=false")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"language.caption_dropout must be in [0, 1); got {self.caption_dropout}")
        for name in ("visual_weight", "decoder_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"language.{name} must be at least 0; got {getattr(self, name)}")
        if self.state_layer >= 0:
            raise ValueError(f"language.state_layer counts from the end, -1 is the last; got {self.state_layer}")
