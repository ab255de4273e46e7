"""Which preference loss is minimised, and how. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from mmpeft.settings import Settings

PreferenceLoss = Literal[
    "dpo", "ipo", "hinge", "robust", "cpo", "simpo", "orpo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down", "sigmoid_norm", "kto", "apo_zero_unpaired",
]  # fmt: skip
WITHOUT_REFERENCE = ("cpo", "simpo", "orpo")
"""Losses that need no reference policy."""
SINGLE = ("kto", "apo_zero_unpaired")
"""Losses of answers that are good or bad by themselves."""
PAIRED = tuple(name for name in get_args(PreferenceLoss) if name not in SINGLE)
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("dpo", "robust", "cpo", "simpo", "exo_pair"),
    "gamma": ("simpo",),
    "nll": PAIRED,
    "nll_over": PAIRED,
    "desirable": SINGLE,
    "undesirable": SINGLE,
}


class PreferenceSettings(Settings):
    """A loss over chosen and rejected answers, or over single ones that are good or bad."""

    name: PreferenceLoss = "dpo"
    """``dpo`` (Rafailov et al. 2023, arXiv:2305.18290; with ``label_smoothing`` cDPO), ``ipo`` (Azar et al. 2023,
    arXiv:2310.12036; log-ratios are means over tokens), ``hinge`` (SLiC, Zhao et al. 2023, arXiv:2305.10425),
    ``robust`` (Chowdhury et al. 2024, arXiv:2403.00409), ``exo_pair`` (Ji et al. 2024, arXiv:2402.00856), ``nca_pair``
    (Chen et al. 2024, arXiv:2402.05369), ``bco_pair`` (Jung et al. 2024, arXiv:2404.04656; without its shift),
    ``sppo_hard`` (Wu et al. 2024, arXiv:2405.00675), ``apo_zero`` and ``apo_down`` (D'Oosterlinck et al. 2024,
    arXiv:2408.06266), ``sigmoid_norm`` (DPO with log-ratios per token); of single answers ``kto`` (Ethayarajh et al.
    2024, arXiv:2402.01306) and ``apo_zero_unpaired``; without a reference ``cpo`` (Xu et al. 2024, arXiv:2401.08417),
    ``simpo`` (Meng et al. 2024, arXiv:2405.14734), ``orpo`` (Hong et al. 2024, arXiv:2403.07691)."""
    beta: PositiveFloat = 0.1
    """Factor on log-ratios (ipo: tau; orpo: lambda; simpo's paper has 2 to 10)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the pairs that are believed to be the wrong way round; ``exo_pair`` needs some (its paper has 1e-3)."""
    gamma: NonNegativeFloat | None = None
    """SimPO's margin between the rewards (null: 0.5)."""
    nll: NonNegativeFloat | None = None
    """Weight of the chosen answer's cross entropy beside the loss (null: 1 for cpo and orpo, else 0)."""
    nll_over: Literal["answer", "text"] = "answer"
    """What that is a mean over: ``answer``, each answer's tokens, as in ORPO's paper; ``text``, as in TRL's ORPO, all
    tokens of the prompts and answers of a batch together, so that accumulation changes it a little."""
    desirable: NonNegativeFloat = 1.0
    """Weight of good answers, where they stand alone."""
    undesirable: NonNegativeFloat = 1.0
    """Weight of bad answers, where they stand alone."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the policy before training."""
        return self.name not in WITHOUT_REFERENCE

    @property
    def nll_weight(self) -> float:
        """Weight of the chosen answer's cross entropy."""
        return float(self.name in ("cpo", "orpo")) if self.nll is None else self.nll

    @property
    def reads_prompts(self) -> bool:
        """Whether a cross entropy of the prompts is minimised too."""
        return self.nll_weight > 0 and self.nll_over == "text"

    @model_validator(mode="after")
    def _consistent(self) -> PreferenceSettings:
        given = {key: getattr(self, key) for key, names in ONLY_FOR.items() if self.name not in names}
        foreign = [key for key, value in given.items() if value != type(self).model_fields[key].default]
        if foreign:
            names = " or ".join(ONLY_FOR[foreign[0]])
            raise ValueError(
                f"{foreign[0]}: {_said(given[foreign[0]])} is for name: {names}, not for name: {self.name}"
            )
        if self.name == "exo_pair" and not self.label_smoothing:
            raise ValueError("label_smoothing: 0 with name: exo_pair, which divides by it: its paper takes 0.001")
        return self


def _said(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
