"""Language models as what their losses are made of: the log-probability of each token that counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.anatomies.headed import Headed
from mmpeft.kernels.token_scores import scores_of, token_scores


class TokenScorer(Headed):
    """Token ids (batch, length) to the log-probabilities of those that count, of a causal or an encoder-decoder model.

    The logits of all positions never exist at one time where the model's last step is a layer of its own
    (``get_output_embeddings``), which is tried once; where something comes after it, such as a soft cap, they do.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Identity()
        self.encoder_decoder = bool(backbone.config.is_encoder_decoder)
        self.chunked = not self.encoder_decoder and _is_last(backbone)

    def forward(
        self,
        input_ids: Tensor,
        counted: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each counted token given those before it, and whether it is the likeliest.

        Both are (counted,), row by row. ``counted`` (batch, length) marks tokens of ``input_ids``; of an
        encoder-decoder model tokens of ``decoder_input_ids``, whose first one starts the answer. The first of a row
        can't be counted: nothing predicts it.
        """
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        options = {name: value for name, value in given.items() if value is not None}
        written = input_ids
        if decoder_input_ids is not None:
            options["decoder_input_ids"], written = decoder_input_ids[:, :-1], decoder_input_ids
        chosen = counted[:, 1:].bool()
        tokens = written[:, 1:][chosen]
        if self.chunked:
            hidden = self.backbone.base_model(input_ids=input_ids, use_cache=False, **options).last_hidden_state
            return token_scores(self.backbone.get_output_embeddings(), hidden[:, :-1][chosen], tokens)
        logits = self.backbone(input_ids=input_ids, use_cache=False, **options).logits
        return scores_of((logits if decoder_input_ids is not None else logits[:, :-1])[chosen], tokens)


@torch.no_grad()
def _is_last(model: Any) -> bool:
    """Tell whether the output layer gets the last hidden states as they are, and whether its output are the logits.

    What it makes is replaced by large numbers: a soft cap would change these, if not those of a new model.
    """
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    seen: list[Tensor] = []

    def plant(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.extend((inputs[0], torch.linspace(-99, 99, output.numel()).to(output).view_as(output)))
        return seen[1]

    ids = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    hook = head.register_forward_hook(plant)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    return torch.equal(seen[0], hidden) and torch.equal(seen[1].float(), logits.float())
