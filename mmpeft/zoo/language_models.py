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
    return model, tokenizer


def load_text_tokenizer(source: str) -> Any:
    """Return the transformers tokenizer of a language model.

    Raises:
        ValueError: If there is none, or it can't be fetched.
        ImportError: If transformers is not installed.
    """
    found = load_tokenizer(source)
    if not hasattr(found, "apply_chat_template"):
        raise ValueError(f"model {source!r}: language models are hf/OWNER/NAME, tiny/llm, or a folder of transformers")
    return found
