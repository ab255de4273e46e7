"""Learned vectors in front of a language model's words: prompt tuning and P-tuning."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmpeft.anatomies.hosts import tensor_of
from mmpeft.anatomies.sites import Site, WordsSite
from mmpeft.edits.base import Arguments, Binding, Call, ChangesOutput, InsertsTokens, Point
from mmpeft.edits.prompted_cache import enter, leave, vectors_in
from mmpeft.edits.together import StacksInput, Together
from mmpeft.kernels.passed import Passed

Start = Literal["random", "vocabulary"]
READER = -1
"""Index of the binding at the tower that reads this one's output."""


class SoftPrompt(InsertsTokens, ChangesOutput, StacksInput):
    """``count`` vectors (count, width) in front of every text; all of it attends to them, and they are not returned.

    So the model's output has as many positions as its input, and the user's labels fit. The vectors take the first
    positions, whatever padding follows; where a cache holds them already they only count, and outside of the tower that
    cache counts its words alone. They start uniform in
    +-0.5, as rows of the vocabulary drawn at random (Lester et al. 2021, arXiv:2104.08691), or as those of ``ids``, in
    turn.
    """

    routes_itself = True

    def __init__(self, site: WordsSite, *, tokens: int, start: Start | tuple[int, ...] = "random") -> None:
        super().__init__()
        self.count, self.path, self.inserted, self.cache = tokens, site.path, Passed(), Passed()
        self.layers = (0,)
        self._make(site, start)

    def _make(self, site: WordsSite, start: Start | tuple[int, ...]) -> None:
        rows = tensor_of(site.embedding, "weight")
        if start == "random":
            self.vectors = nn.Parameter(torch.rand(self.count, site.width) - 0.5)
            return
        ids = torch.randint(len(rows), (self.count,)).tolist() if start == "vocabulary" else start
        beyond = [number for number in ids if number >= len(rows)]
        if beyond:
            raise ValueError(f"ids: {beyond} beyond the {len(rows)} tokens of {site.path}")
        chosen = [ids[position % len(ids)] for position in range(self.count)]
        self.vectors = nn.Parameter(rows[chosen].detach().to(torch.promote_types(rows.dtype, torch.float32)))

    def prompt(self) -> Tensor:
        """Return the vectors (count, width)."""
        return self.vectors

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to both sides of the tower; where another reads what it returns, to that one's input instead."""
        assert isinstance(site, WordsSite)
        yield Binding(edit=self, host=site.host, point=Point.INPUT, site=site)
        if site.reader is None:
            yield Binding(edit=self, host=site.host, point=Point.OUTPUT, site=site)
        else:
            yield Binding(edit=self, host=site.reader, point=Point.INPUT, site=site, index=READER)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Put the vectors in front of the words, unless a cache holds them, and make room in masks and positions."""
        return self._entered(args, kwargs, call, lambda words: self._placed(words, call))

    def _entered(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call, placed: Callable[[Tensor], Tensor]
    ) -> Arguments:
        if call.binding.index == READER:
            return args, kwargs if call.joins else kwargs | self._masked(kwargs, "encoder_attention_mask")
        if len(args) > 1:
            raise ValueError(f"{self.path}: give a model with a prompt all but its first argument by name")
        words = kwargs.get("inputs_embeds")
        if words is None:
            assert isinstance(call.binding.site, WordsSite)
            words = call.binding.site.embedding(args[0])
        first = self._first(kwargs.get("past_key_values"), call)
        if first:
            words = placed(words)
        if not call.joins:
            self.inserted.value = first
            kwargs = kwargs | self._extended(kwargs, first)
        return (None,), kwargs | {"inputs_embeds": words}

    def _placed(self, words: Tensor, call: Call) -> Tensor:
        """Put the vectors in front; of the samples served here in the place that another adapter's took."""
        rows = slice(None) if call.route is None else call.route.rows(len(words))
        served, start = words[rows], call.offset
        end = start + self.count if call.joins else start
        prompt = self.prompt().to(words.dtype).expand(len(served), -1, -1)
        placed = torch.cat([served[:, :start], prompt, served[:, end:]], 1)
        return words.index_copy(0, rows, placed) if isinstance(rows, Tensor) else placed

    def alike(self) -> Hashable:
        """The number of vectors."""
        return self.count

    @staticmethod
    def stacked(edits: Sequence[SoftPrompt]) -> tuple[Tensor, ...]:
        """The vectors (edits, count, width), whatever made them."""
        return (torch.stack([edit.prompt() for edit in edits]),)

    def routed_input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Together) -> Arguments:
        """Put each sample's own vectors in front."""

        def placed(words: Tensor) -> Tensor:
            prompts = call.layout.spread(call.stack(words.dtype)[0], len(words))
            end = call.offset + self.count if call.joins else call.offset
            return torch.cat([words[:, : call.offset], prompts, words[:, end:]], 1)

        return self._entered(args, kwargs, call, placed)

    def _first(self, cache: Any, call: Call) -> bool:
        """Whether the vectors are to be put in: no cache holds them yet."""
        if cache is None:
            return True
        if cache.is_compileable:
            raise ValueError(f"{self.path}: a static cache has no room for a prompt: use a dynamic one")
        first, ahead = not cache.get_seq_length(), call.offset + self.count
        if not torch.compiler.is_compiling():
            if not first and vectors_in(cache) < ahead:
                raise ValueError(
                    f"{self.path}: past_key_values: this cache was filled without the prompt: begin with an empty one"
                )
            enter(cache, ahead if first else vectors_in(cache))
            self.cache.value = cache
        return first

    def _extended(self, given: dict[str, Any], first: bool) -> dict[str, Any]:
        """Return the arguments that have a place per word, longer by the vectors; positions come behind theirs."""
        longer = self._masked(given, "attention_mask")
        positions, kinds = given.get("position_ids"), given.get("token_type_ids")
        if positions is not None:
            first_positions = torch.arange(self.count, device=positions.device).expand(*positions.shape[:-1], -1)
            behind = positions + self.count
            longer["position_ids"] = torch.cat([first_positions, behind], -1) if first else behind
        if kinds is not None and first:
            longer["token_type_ids"] = torch.cat([kinds.new_zeros(len(kinds), self.count), kinds], 1)
        return longer

    def _masked(self, given: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the mask of this name, if there is one, open to the vectors."""
        mask = given.get(name)
        if mask is None:
            return {}
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise ValueError(
                f"{self.path}: {name}: a prompt needs it as (batch, length). This is yours, or one that the model "
                "made of yours (PaliGemma does, for its image), and such a model can't take a prompt"
            )
        return {name: torch.cat([mask.new_ones(len(mask), self.count), mask], 1)}

    def output(self, x: Tensor, y: Any, call: Call) -> Any:
        """Leave the vectors' positions out, of hidden states too; behind a cache there are none."""
        self._leave_cache(y)
        if not self.inserted.value:
            return y
        if isinstance(y, Tensor):
            return y[:, self.count :]
        y["last_hidden_state"] = y["last_hidden_state"][:, self.count :]
        if y.get("hidden_states") is not None:
            y["hidden_states"] = tuple(state[:, self.count :] for state in y["hidden_states"])
        return y

    def _leave_cache(self, y: Any) -> None:
        cache, self.cache.value = self.cache.value, None
        if cache is None and isinstance(y, dict) and y.get("past_key_values") is not None:  # the tower made it
            if torch.compiler.is_compiling():
                return
            cache = y["past_key_values"]
            enter(cache, vectors_in(cache) + self.count)
        if cache is not None:
            leave(cache)

    def extra_repr(self) -> str:
        """How many."""
        return f"{self.count} tokens"


class EncodedPrompt(SoftPrompt):
    """A prompt that a network makes of vectors e (count, width) (P-tuning, Liu et al. 2021, arXiv:2103.10385).

    ``mlp``: ``W_3 relu(W_2 relu(W_1 e + b_1) + b_2) + b_3``, hidden layers ``hidden`` wide. ``lstm``: two layers of
    LSTMs in both directions, (count, 2 x hidden), then ``W_2 relu(W_1 h + b_1) + b_2``. The vectors start standard
    normal, the network as torch's layers do; both as in HF peft.
    """

    def __init__(self, site: WordsSite, *, tokens: int, encoder: Literal["mlp", "lstm"], hidden: int) -> None:
        super().__init__(site, tokens=tokens)
        self.vectors = nn.Parameter(torch.randn(tokens, site.width))
        self.recurrent, inner = None, site.width
        if encoder == "lstm":
            self.recurrent = nn.LSTM(site.width, hidden, num_layers=2, bidirectional=True, batch_first=True)
            inner = hidden = 2 * hidden
        middle = [] if encoder == "lstm" else [nn.Linear(hidden, hidden), nn.ReLU()]
        self.network = nn.Sequential(nn.Linear(inner, hidden), nn.ReLU(), *middle, nn.Linear(hidden, site.width))

    def prompt(self) -> Tensor:
        """Return what the network makes of the vectors."""
        vectors = self.vectors if self.recurrent is None else self.recurrent(self.vectors[None])[0][0]
        prompt: Tensor = self.network(vectors)
        return prompt

    def kept(self) -> dict[str, Tensor]:
        """Return the prompt itself, whatever made it."""
        with torch.no_grad():
            return {"vectors": self.prompt()}
