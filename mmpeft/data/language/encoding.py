"""Examples as tokens, each with whether it is learned: by a chat template, or as plain text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.formats import Example, Said, Turns, first_difference
from mmpeft.data.language.rows import BadRowError

CONTEXT, LEARNED, THOUGHT = 0, 1, 2
"""Kinds of tokens: given, to be learned, and to be learned as part of the thoughts in front of an answer."""
MARKER = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
OPEN, CLOSE = "\ue000", "\ue001"
"""Characters for private use that stand for a template's markers."""
Spans = list[tuple[int, int]]
"""Places in a text, from the first character to behind the last."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids (length,) with the kind of each (length,), and their positions (length,) if they don't just count."""

    tokens: np.ndarray
    kinds: np.ndarray
    positions: np.ndarray | None = None


class Encoder:
    """Turns examples into tokens as a tokenizer and a configuration want it.

    Raises:
        ValueError: If the tokenizer has no end-of-text token, is not a fast one, or its chat template is missing where
            it is needed.
    """

    def __init__(self, tokenizer: Any, config: LanguageData) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.learn = config.learn or {"text": "all", "messages": "assistant", "sharegpt": "assistant"}.get(
            config.name, "completion"
        )
        if config.chat_template is not None:
            tokenizer.chat_template = config.chat_template.expanduser().read_text(encoding="utf-8")
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"model: {type(tokenizer).__name__} has no fast version, which says where a token comes from"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError("model: its tokenizer has no end-of-text token (eos_token): nothing would ever end")
        added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
        self.special = {*tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id}

    def encode(self, example: Example) -> Encoded:
        """Return prompt and answer as tokens.

        Raises:
            BadRowError: If nothing of it is to be learned, or the chat template refuses it.
            ValueError: If the tokenizer has no chat template, or one in which the answers can't be found.
        """
        return self._encode(example.prompt, example.answer, example)

    def encode_other(self, example: Example, answer: Said) -> Encoded:
        """Return the prompt of an example with another answer."""
        return self._encode(example.prompt, answer, example)

    def encode_prompt(self, example: Example) -> np.ndarray:
        """Return the tokens (length,) after which the model is to answer."""
        if isinstance(example.prompt, str):
            ids = self.tokenizer(example.prompt)["input_ids"]
            ids = ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids
        else:
            text = self._render(example.prompt, example, add_generation_prompt=True)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def reference(self, example: Example) -> str:
        """Return the right answer as a text."""
        return example.answer if isinstance(example.answer, str) else str(example.answer[-1]["content"])

    def ends(self) -> list[int]:
        """Return the tokens that end an answer: the end of the text, and in a chat template the end of a turn."""
        if self.tokenizer.chat_template is None:
            return [int(self.tokenizer.eos_token_id)]
        said = [{"role": "user", "content": "Hello"}], [{"role": "assistant", "content": "Hello"}]
        encoded = self._chat(tuple(said[0]), tuple(said[1]), Example((), ()))
        special = [int(token) for token in encoded.tokens[encoded.kinds > 0] if int(token) in self.special]
        return sorted({int(self.tokenizer.eos_token_id), *special[-1:]})

    def _encode(self, prompt: Said, answer: Said, example: Example) -> Encoded:
        if isinstance(prompt, str) or isinstance(answer, str):
            encoded = self._plain(str(prompt), str(answer))
        else:
            encoded = self._chat(prompt, answer, example)
        whole, length = encoded, self.config.max_length
        if self.config.packing != "wrapped":
            encoded = Encoded(encoded.tokens[:length], encoded.kinds[:length])
        if not encoded.kinds[1:].any():
            behind = f", for its first {length} tokens are prompt: raise data.max_length" if whole.kinds.any() else ""
            raise BadRowError(f"has nothing to learn{behind or ': no token is in an answer: remove it'}")
        return encoded

    # ---- plain texts ---------------------------------------------------------------------------------------------

    def _plain(self, prompt: str, answer: str) -> Encoded:
        """Tokenise both as one text and end it; a token across the border is the answer's."""
        text, end = prompt + answer, self.tokenizer.eos_token_id
        tokenized = self.tokenizer(text, return_offsets_mapping=True)
        spans = [(0 if self.learn == "all" else len(prompt), len(text))]
        tokens, kinds = list(tokenized["input_ids"]), self._kinds(text, _covers(tokenized["offset_mapping"]), spans)
        length = len(tokens) - (tokens[-1] == end)
        return Encoded(np.asarray([*tokens[:length], end], np.int32), np.append(kinds[:length], np.uint8(LEARNED)))

    # ---- conversations -------------------------------------------------------------------------------------------

    def _chat(self, prompt: Turns, answer: Turns, example: Example) -> Encoded:
        turns = (*prompt, *answer)
        text = self._render(turns, example)
        tokenized = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        covers, tokens = _covers(tokenized["offset_mapping"]), tokenized["input_ids"]
        if self.learn == "all":
            spans = [(0, len(text))]
        elif MARKER.search(self.tokenizer.chat_template):
            skipped = sum(map(_speaks, prompt)) if self.learn == "completion" else 0
            spans = self._marked(turns, example)[skipped:]
        else:
            spans = self._differences(turns, len(prompt) if self.learn == "completion" else 0, text, covers, example)
        kinds = self._kinds(text, covers, spans)
        if self.learn != "all":
            self._check_end(tokens, kinds)
        return Encoded(np.asarray(tokens, np.int32), kinds)

    def _render(self, turns: Turns, example: Example, **options: Any) -> str:
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "model: its tokenizer has no chat template, which conversations need: give one by data.chat_template, "
                "or take data of prompts and completions with data.template: plain"
            )
        tools = {"tools": list(example.tools)} if example.tools else {}
        how = {**self.config.template_options, **tools, **options}
        try:
            return self.tokenizer.apply_chat_template(list(turns), tokenize=False, **how)
        except (TemplateError, TypeError, LookupError, AttributeError, ValueError) as error:
            raise BadRowError(f"is refused by the chat template: {error}: change or remove it") from None

    def _marked(self, turns: Turns, example: Example) -> Spans:
        """Return the spans that the template's own markers (``{% generation %}``) enclose.

        transformers' own mask forgets an answer that begins with white space which no token holds.
        """
        shown = MARKER.sub(_show, self.tokenizer.chat_template)
        pieces = re.split(f"([{OPEN}{CLOSE}])", self._render(turns, example, chat_template=shown))
        spans, position, start = [], 0, 0
        for piece in pieces:
            if piece == OPEN:
                start = position
            elif piece == CLOSE:
                spans.append((start, position))
            else:
                position += len(piece)
        return spans

    def _differences(self, turns: Turns, first: int, text: str, covers: Spans, example: Example) -> Spans:
        """Return the spans of the assistant's turns up to where the sample is cut: each costs two renderings."""
        is_cut = self.config.packing != "wrapped" and len(covers) > self.config.max_length
        spans: Spans = []
        for index in range(first, len(turns)):
            if is_cut and spans and spans[-1][1] >= covers[self.config.max_length - 1][1]:
                break
            if _speaks(turns[index]):
                spans.append(self._difference(turns, index, text, covers, example))
        return spans

    def _difference(self, turns: Turns, turn: int, text: str, covers: Spans, example: Example) -> tuple[int, int]:
        """Return the span of a turn: what the template adds to the turns before it, behind the prompt to speak."""
        before = self._render(turns[:turn], example, add_generation_prompt=True)
        after = self._render(turns[: turn + 1], example)
        if text.startswith(before):
            end = len(after) if text.startswith(after) else self._end_of(turns[turn], len(before), text, after)
            if end is not None and end > len(before):
                return len(before), max(stop for _, stop in covers if stop <= end)
        raise ValueError(
            "model: in its chat template a conversation does not begin as its first turns alone do, so answers "
            "can't be found in it: give a template with {% generation %} markers by data.chat_template"
            + (", or take data.learn: completion" if self.learn == "assistant" else "")
        )

    def _end_of(self, turn: dict[str, Any], start: int, text: str, after: str) -> int | None:
        """Return the end of an answer that looks otherwise where it is the last one: without thoughts, or an end.

        It is as far behind the words of the answer as both texts agree.
        """
        words = str(turn["content"]).rpartition(self.config.reasoning.tags[1])[2].strip()
        here, there = text.find(words, start), after.find(words, start)
        if not words or here < 0 or there < 0:
            return None
        here, there = here + len(words), there + len(words)
        return here + first_difference(text[here:], after[there:])

    def _check_end(self, tokens: list[int], kinds: np.ndarray) -> None:
        """Raise a ValueError unless the last answer ends with a token that says so: else the model would never stop."""
        learned = np.flatnonzero(kinds)
        last = int(learned[-1]) if len(learned) else 0
        while last > 0 and tokens[last] not in self.special and self._blank(tokens[last]):
            last -= 1
        if len(learned) and tokens[last] not in self.special:
            raise ValueError(
                f"model: its chat template ends an answer with {self.tokenizer.decode(tokens[last])!r} and no special "
                "token that is learned, so the model would never stop: put the end of the turn in front of "
                "{% endgeneration %}, in a template given by data.chat_template"
            )

    def _blank(self, token: int) -> bool:
        return not self.tokenizer.decode(token).strip()

    # ---- both ----------------------------------------------------------------------------------------------------

    def _kinds(self, text: str, covers: Spans, spans: Spans) -> np.ndarray:
        """Return the kind of each token; thoughts without a word are no more learned than the prompt to speak."""
        full, empty = self._thoughts(text)
        learned = _inside(covers, spans) & ~_inside(covers, empty)
        return np.where(learned, np.where(_inside(covers, full), THOUGHT, LEARNED), CONTEXT).astype(np.uint8)

    def _thoughts(self, text: str) -> tuple[Spans, Spans]:
        """Return the spans of thoughts, and of tags with nothing between them, with the white space behind these."""
        full = _between(text, *self.config.reasoning.tags)
        opening, closing = map(re.escape, self.config.reasoning.tags)
        empty = [match.span() for match in re.finditer(rf"{opening}\s*{closing}\s*", text)]
        return full, empty


def _between(text: str, opening: str, closing: str) -> Spans:
    """Return the spans from each opening tag to the closing one behind it; tags that have none cost no second look."""
    spans, position = [], 0
    while (start := text.find(opening, position)) >= 0 and (end := text.find(closing, start + len(opening))) >= 0:
        position = end + len(closing)
        spans.append((start, position))
    return spans


def _show(marker: re.Match[str]) -> str:
    """Return a block that prints what stands for a marker, and trims white space around it as the marker does."""
    left, closing, right = marker.groups()
    return f"{{%{left} if true %}}{{{{ '{CLOSE if closing else OPEN}' }}}}{{% endif {right}%}}"


def _speaks(turn: dict[str, Any]) -> bool:
    return turn["role"] == "assistant"


def _covers(offsets: Spans) -> Spans:
    """Return the place of each token with the white space in front of it, which some tokenizers leave out."""
    covers, done = [], 0
    for start, end in offsets:
        covers.append((min(start, done), end))
        done = max(done, end)
    return covers


def _inside(covers: Spans, spans: Spans) -> np.ndarray:
    """Return which tokens have a character in one of the spans, which are in order and share none."""
    if not spans:
        return np.zeros(len(covers), dtype=bool)
    starts, ends = np.asarray(covers).reshape(-1, 2).T
    begins, stops = np.asarray(spans).T
    first = np.searchsorted(stops, starts, side="right")
    touched = (first < len(stops)) & (begins[np.minimum(first, len(stops) - 1)] < ends)
    return touched & (starts < ends)
