"""A tiny Llama that was never trained, and a tokenizer of whole words, for tests of several folders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

SAID = (
    "what is a an the to of and in how do i you can say not cannot help sorry with that one two three four five six "
    "plus minus red green blue cat dog sun moon big small opposite colour steal car bank bike wash answer yes no so "
    "Hello user assistant ? . , : ! + - < > / | # ' Human Assistant first then therefore because think step 1 2 3 4 5"
)
"""The words that it knows."""
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<think>", "</think>"]
TURN = (
    "{{{{ bos_token }}}}{{% for message in messages %}}{{{{ '<|' + message['role'] + '|>' }}}}"
    "{{% if message['role'] == 'assistant' %}}{before}{{{{ ' ' + message['content'] + '<|end|>' }}}}{after}"
    "{{% else %}}{{{{ ' ' + message['content'] + '<|end|>' }}}}{{% endif %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|assistant|>' }}}}{{% endif %}}"
)
PLAIN_TEMPLATE = TURN.format(before="", after="")
MARKED_TEMPLATE = TURN.format(before="{% generation %}", after="{% endgeneration %}")


@lru_cache
def _words() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *SAID.split()]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return made.to_str()


def tokenizer(template: str | None = MARKED_TEMPLATE, **options: Any) -> Any:
    """Return a tokenizer with a chat template; it puts ``<s>`` in front of plain text."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer.from_str(_words())
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    how = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **options}
    extra = [token for token in SPECIAL if token not in how.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, additional_special_tokens=extra, chat_template=template, **how
    )


ENDS = ("<|eot_id|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>")


def byte_tokenizer(template: str | None) -> Any:
    """Return a tokenizer of bytes and special tokens, and of two spaces, whose offsets leave white space out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ", "<s>", "</s>", "<think>", "</think>", *ENDS]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(known)}, [("Ġ", "Ġ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    made.decoder = decoders.ByteLevel()
    how = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": [*ENDS], "chat_template": template}
    return PreTrainedTokenizerFast(tokenizer_object=made, **how)


def llama(**options: Any) -> Any:
    """Return a Llama of two layers with random weights, the same each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    size |= {"num_key_value_heads": 2, "initializer_range": 0.2, "tie_word_embeddings": False, **options}
    config = LlamaConfig(**{"vocab_size": len(tokenizer())} | ids | size)
    return LlamaForCausalLM(config).eval()


def save(folder: Path, template: str | None = MARKED_TEMPLATE) -> str:
    """Write model and tokenizer to a folder, and return its name for a configuration."""
    llama().save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, rows: Iterable[Any]) -> str:
    """Write rows as JSON lines, and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conversation(*said: str, roles: tuple[str, ...] = ("user", "assistant")) -> list[dict[str, str]]:
    """Return turns of user and assistant by turns."""
    return [{"role": roles[place % len(roles)], "content": text} for place, text in enumerate(said)]


LENGTHS = (3, 9, 5, 14, 4, 8, 6, 11)


def make_rows(lengths: tuple[int, ...] = LENGTHS) -> list[Any]:
    """Return encoded rows of these lengths, of random tokens of every kind, the same each time."""
    import numpy as np

    from mmpeft.data.language.encoding import Encoded

    random = np.random.default_rng(0)
    return [
        Encoded(random.integers(3, 88, n).astype(np.int32), np.r_[0, random.integers(0, 3, n - 2), 1].astype(np.uint8))
        for n in lengths
    ]


def make_model() -> tuple[Any, Any]:
    """Return a scorer around a Llama whose LoRA adapter is not at its start, and the adapters."""
    import torch

    import mmpeft
    from mmpeft.heads.token_probabilities import TokenScorer

    scorer = TokenScorer(llama())
    adapters = mmpeft.adapt(scorer, {"method": "lora", "rank": 2, "targets": "all"})
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.1)
    return scorer, adapters


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert(name: str = "BertModel", **options: Any) -> Any:
    """Return a BERT of two layers with random weights, the same each time."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer()), pad_token_id=0, initializer_range=0.2, **SMALL, **options
    )
    return getattr(transformers, name)(config).eval()


def writer(family: str = "t5") -> Any:
    """Return a T5 or a BART of two layers with random weights, the same each time."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    ids = {"vocab_size": len(tokenizer()), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "t5":
        size = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
        return T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **size, **ids)).eval()  # type: ignore[call-arg]
    sides = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
    size = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    config = BartConfig(d_model=32, max_position_embeddings=64, init_std=0.2, decoder_start_token_id=2, **size, **ids)
    return BartForConditionalGeneration(config).eval()


def save_model(folder: Path, model: Any, *, pairs: bool = True) -> str:
    """Write a model to a folder with a tokenizer that ends a text by ``</s>``, and also puts it between two."""
    from tokenizers import processors

    model.save_pretrained(folder)
    made = tokenizer(None, **({"cls_token": "<s>", "sep_token": "</s>"} if pairs else {}))
    marks = {"single": "<s> $A </s>", "pair": "<s> $A </s> $B:1 </s>:1"} if pairs else {"single": "$A </s>"}
    made._tokenizer.post_processor = processors.TemplateProcessing(special_tokens=[("<s>", 1), ("</s>", 2)], **marks)
    made.save_pretrained(folder)
    return str(folder)
