"""A tokenizer whose tokens the model's embedding has no rows for is refused before it is an IndexError."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from mmpeft.zoo.language_models import check_vocabulary


class Words:
    """A tokenizer of ten words and some that were added behind them."""

    vocab_size = 10
    bos_token = unk_token = sep_token = cls_token = mask_token = None

    def __init__(self, added: tuple[str, ...] = (), pad: str | None = None, template: str | None = None) -> None:
        self.added, self.pad_token, self.eos_token, self.chat_template = added, pad, "<end>", template

    def __len__(self) -> int:
        return self.vocab_size + len(self.added)

    def get_added_vocab(self) -> dict[str, int]:
        return {name: self.vocab_size + number for number, name in enumerate(self.added)}


def model(rows: int) -> Any:
    return SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(rows, 2))


@pytest.mark.parametrize(
    ("tokenizer", "rows"),
    [(Words(), 9), (Words(("<pad>",), "<pad>"), 10), (Words(("<think>",), template="{{ '<think>' }}"), 10)],
)
def test_tokens_beyond_the_embedding_are_refused(tokenizer: Any, rows: int) -> None:
    with pytest.raises(ValueError, match=rf"model 'hf/x': its tokenizer has {len(tokenizer)} tokens.* {rows} rows"):
        check_vocabulary(model(rows), tokenizer, "hf/x")


@pytest.mark.parametrize("tokenizer", [Words(), Words(("<image>",))])
def test_an_added_token_that_no_text_has_is_none_of_them(tokenizer: Any) -> None:
    """Gemma 3's text models ship with a place for images that their embedding has no row for."""
    check_vocabulary(model(10), tokenizer, "hf/x")
