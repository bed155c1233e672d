"""Tokenizers of text: one trained here, without downloads, and those of transformers; both as JSON in a saved model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SPECIAL = ("<pad>", "<s>", "</s>", "<answer>")  # pad, begin, end, and the start of an answer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of frequent words and their parts; any text can be encoded, and decodes to itself.

    Args:
        texts: captions, questions and answers of the training data.
        vocab_size: most ids, of which 4 are special tokens and 256 are bytes.

    Raises ImportError if transformers is not installed, ValueError without texts.
    """
    require_transformers()
    texts = [] if isinstance(texts, str) else list(texts)
    if not texts:
        raise ValueError("texts must be the captions, questions and answers of the training data, at least one")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL[:3], strict=True)))


def dump_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """JSON data of a tokenizer of transformers, for `load_tokenizer`."""
    names = {name: str(getattr(tokenizer, name)) for name in ("pad_token", "bos_token", "eos_token")}
    return {"json": tokenizer.backend_tokenizer.to_str(), "special": {k: v for k, v in names.items() if v != "None"}}


def load_tokenizer(saved: dict[str, Any]) -> Any:
    """The tokenizer that `dump_tokenizer` described."""
    from tokenizers import Tokenizer

    return _wrap(Tokenizer.from_str(saved["json"]), saved["special"])


def _wrap(tokenizer: Any, special: dict[str, Any]) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, in which special tokens are read as such; nothing is added."""
    return tokenizer(text, add_special_tokens=False).input_ids if text else []


def require_transformers() -> None:
    """Raise ImportError, with what to install, if transformers is missing."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError("the language model of VTok needs transformers: pip install 'sweettok[vtok]'") from error
