"""Language models with their tokenizers: ``hf/OWNER/NAME``, ``tiny/llm``, or a folder of transformers."""

from __future__ import annotations

from typing import Any

import torch

from mmpeft.zoo.entrance import load_model, load_tokenizer


def load_language_model(source: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return a transformers model that writes, as ``load_model`` gives it, and its tokenizer.

    Raises:
        ValueError: If it can't be fetched, or is no language model.
        ImportError: If transformers is not installed.
    """
    tokenizer = load_text_tokenizer(source)
    model: Any = load_model(source, dtype=dtype)
    if not hasattr(model, "generate") or model.get_output_embeddings() is None:
        raise ValueError(f"model {source!r}: {type(model).__name__} writes no text; a language model is wanted")
    check_vocabulary(model, tokenizer, source)
    return model, tokenizer


ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
"""Tokens that a tokenizer puts into texts by itself."""


def check_vocabulary(model: Any, tokenizer: Any, source: str) -> None:
    """Raise a ValueError if texts have tokens that the model's embedding has no row for.

    Tokens that were added to a vocabulary count if the chat template or the tokenizer itself uses them: some models
    ship with others, such as a place for images in the text model of a family, and never see them.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    template, special = str(tokenizer.chat_template or ""), {getattr(tokenizer, f"{role}_token") for role in ROLES}
    added = {
        name: number for name, number in tokenizer.get_added_vocab().items() if name in special or name in template
    }
    beyond = [name for name, number in added.items() if number >= rows]
    if tokenizer.vocab_size > rows or beyond:
        named = f" ({', '.join(map(repr, beyond[:3]))} among them)" if beyond else ""
        raise ValueError(
            f"model {source!r}: its tokenizer has {len(tokenizer)} tokens{named}, and its embedding {rows} rows: it is "
            "another model's, or the embedding was not resized (model.resize_token_embeddings(len(tokenizer)))"
        )


def load_text_tokenizer(source: str) -> Any:
    """Return the transformers tokenizer of a language model.

    Raises:
        ValueError: If there is none, or it can't be fetched.
        ImportError: If transformers is not installed.
    """
    tokenizer = load_tokenizer(source)
    if not hasattr(tokenizer, "apply_chat_template"):
        raise ValueError(f"model {source!r}: language models are hf/OWNER/NAME, tiny/llm, or a folder of transformers")
    return tokenizer
