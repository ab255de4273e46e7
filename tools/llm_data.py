"""The tokenizer of `tiny/llm`, and its pretraining text as one long row of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
from llm_sentences import write
from llm_text import is_held_out, read_documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
LENGTH = 512
"""Positions of the model; it is trained on half as many."""
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
RESERVED = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|think|>", "</think>")
"""Tokens of the later stages; none of them occurs in pretraining."""
SPECIAL = 3 + len(RESERVED)
"""How many of the vocabulary's first tokens are special."""
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role ' + message['role'] + ' is not one of system, user, assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ ' ' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Every turn is ``<|role|> text<|end|>``; the space belongs to the first word's token, as inside a sentence."""


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train byte-level pairs (Sennrich et al., 2016); digits stand alone, any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, EOS, PAD, *RESERVED]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(RESERVED),
        model_max_length=LENGTH,
        padding_side="left",
        chat_template=TEMPLATE,
    )


def build_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train the tokenizer on documentation and as much of sentences, unless it is there."""
    if not (folder / "tokenizer.json").exists():
        documents, random = read_documents(), Random("tokenizer")
        tokenizer = train_tokenizer([*documents, *(write(random) for _ in range(len(documents)))])
        tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def build_tokens(tokenizer: PreTrainedTokenizerFast, count: int, share: float, seed: int, path: Path) -> torch.Tensor:
    """Return at least so many tokens of documents, a share of them documentation, the rest sentences.

    Fewer tokens of the same seed are the beginning of more of them.
    """
    if not path.exists():
        random, made, parts = Random(seed), 0, []
        prose = _endless([text for text in read_documents() if not is_held_out(text)], random)
        while made < count:
            texts = [next(prose) if random.random() < share else write(random) for _ in range(1000)]
            parts.append(np.concatenate(_encode(tokenizer, texts)))
            made += len(parts[-1])
        np.save(path, np.concatenate(parts))
    return torch.from_numpy(np.load(path).astype(np.int64))


def _endless(texts: list[str], random: Random) -> Iterator[str]:
    while True:
        yield from random.sample(texts, len(texts))


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    """Return each text's tokens, with begin and end."""
    return [np.array([*ids, tokenizer.eos_token_id], np.uint16) for ids in tokenizer(texts)["input_ids"]]


def held_out_rows(tokenizer: PreTrainedTokenizerFast, length: int) -> dict[str, torch.Tensor]:
    """Return rows (rows, length) of documentation that is never trained on, and of sentences of another seed."""
    prose = [text for text in read_documents() if is_held_out(text)]
    random = Random("held out")
    texts = {"documentation": prose, "sentences": [write(random) for _ in range(300)]}
    rows = {}
    for name, part in texts.items():
        joined = torch.from_numpy(np.concatenate(_encode(tokenizer, part)).astype(np.int64))
        rows[name] = joined[: len(joined) // length * length].view(-1, length)
    return rows
