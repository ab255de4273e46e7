"""HF peft's configurations of prompts, vectors in front of a model's words, and of prefixes, in front of its keys."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mmpeft.formats.tensor_file import Shapes
from mmpeft.methods import Method, PrefixTuning, PromptTuning, PTuning
from mmpeft.settings import Settings

VECTORS = "prompt_embeddings"
TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""By the end of a model's class; peft leaves a prompt out where it isn't told the task."""


class PromptConfig(Settings):
    """Prompt tuning and P-tuning; of the latter, too, only the vectors that came out are kept."""

    suffix: ClassVar[str] = VECTORS

    peft_type: Literal["PROMPT_TUNING", "P_TUNING"]
    task_type: str | None = None
    num_virtual_tokens: int = Field(ge=1, le=2**20)
    token_dim: int | None = None
    num_transformer_submodules: Literal[1] | None = 1
    """For how many towers there are vectors; of an encoder-decoder model's two sets peft uses the first."""
    encoder_hidden_size: int | None = None
    modules_to_save: None = None

    def paths(self, shapes: Shapes) -> list[str]:
        """Return the one place of a prompt, if a file of these tensors has it."""
        return [key for key in shapes if key == VECTORS]

    def methods(self, shapes: Shapes) -> list[Method]:
        """Return the method that plans the vectors."""
        if self.peft_type == "P_TUNING":
            return [PTuning(tokens=self.num_virtual_tokens, encoder=None)]
        return [PromptTuning(tokens=self.num_virtual_tokens)]


class PrefixConfig(Settings):
    """``adapter_config.json`` of prefix tuning; the file holds what a network made, if there was one."""

    peft_type: Literal["PREFIX_TUNING"] = "PREFIX_TUNING"
    task_type: str | None = None
    """Which of peft's classes puts the prefix into the cache."""
    num_virtual_tokens: int = Field(ge=1, le=2**20)
    token_dim: int
    """Features of a layer's keys."""
    num_attention_heads: int
    """Heads of keys."""
    num_layers: int
    num_transformer_submodules: Literal[1] = 1
    """Two are an encoder and a decoder."""
    prefix_projection: bool = False
    """Whether a network made the prefix."""
    encoder_hidden_size: int | None = None
    """Width of that network."""
    init_weights: str | None = None

    def methods(self, shapes: Shapes) -> list[Method]:
        """Return the method that plans the prefix."""
        return [PrefixTuning(tokens=self.num_virtual_tokens, hidden=None, shifted=True)]


def task_of(model: str) -> str:
    """Return peft's name of what a class of transformers is for."""
    return next((task for end, task in TASKS.items() if model.endswith(end)), "FEATURE_EXTRACTION")
