"""The words of a text encoder in a pipeline, by the pipeline's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmpeft.anatomies.libraries.pipeline_labels import tokenizers


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer of transformers: ids of words, and places for new ones."""

    tokenizer: Any

    def words(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text's words, without those that every text has in front and behind."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def ids_for(self, words: Sequence[str]) -> tuple[int, ...]:
        """Return the id of each word: its own if the tokenizer has it whole, else the one that ``add`` will give it."""
        known = self.tokenizer.get_vocab()
        unknown = [word for word in words if word not in known]
        return tuple(known[word] if word in known else len(known) + unknown.index(word) for word in words)

    def add(self, words: Sequence[str]) -> None:
        """Make the tokenizer know these words whole; it keeps them when the adapter is removed."""
        self.tokenizer.add_tokens(list(words))


def vocabularies_of(model: Any) -> dict[str, Vocabulary]:
    """Return the vocabulary of each text encoder of a pipeline, by the encoder's label."""
    return {label: Vocabulary(tokenizer) for label, tokenizer in tokenizers(getattr(model, "components", {})).items()}


Modules = Mapping[str, nn.Module]


def modules_of(model: nn.Module | Modules) -> dict[str, nn.Module]:
    """Return the modules that an adapter spans, by label: "" for a single module."""
    if isinstance(model, nn.Module):
        return {"": model}
    components = model if isinstance(model, Mapping) else getattr(model, "components", None)
    if components is None:
        raise ValueError(f"model: {type(model).__name__} is neither a torch module, a dict of them, nor a pipeline")
    return {label: module for label, module in components.items() if isinstance(module, nn.Module)}
