"""Which preference loss is minimised, and how. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from mmpeft.settings import Settings

PreferenceLoss = Literal["dpo", "ipo", "hinge", "robust", "cpo", "simpo", "orpo", "kto"]
WITHOUT_REFERENCE = ("cpo", "simpo", "orpo")
"""Losses that need no reference policy."""
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("dpo", "robust", "cpo", "simpo"),
    "gamma": ("simpo",),
    "nll": ("dpo", "ipo", "hinge", "robust", "cpo", "simpo", "orpo"),
    "desirable": ("kto",),
    "undesirable": ("kto",),
}


class PreferenceSettings(Settings):
    """A loss over chosen and rejected answers, or over single ones that are good or bad."""

    name: PreferenceLoss = "dpo"
    """``dpo`` (Rafailov et al. 2023, arXiv:2305.18290; with ``label_smoothing`` cDPO), ``ipo`` (Azar et al. 2023,
    arXiv:2310.12036; log-ratios are means over tokens), ``hinge`` (SLiC, Zhao et al. 2023, arXiv:2305.10425),
    ``robust`` (Chowdhury et al. 2024, arXiv:2403.00409), ``kto`` (Ethayarajh et al. 2024, arXiv:2402.01306); without a
    reference ``cpo`` (Xu et al. 2024, arXiv:2401.08417), ``simpo`` (Meng et al. 2024, arXiv:2405.14734), ``orpo`` (Hong
    et al. 2024, arXiv:2403.07691)."""
    beta: PositiveFloat = 0.1
    """Factor on log-ratios (ipo: tau; orpo: lambda; simpo's paper has 2 to 10)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the pairs that are believed to be the wrong way round."""
    gamma: NonNegativeFloat | None = None
    """SimPO's margin between the rewards (null: 0.5)."""
    nll: NonNegativeFloat | None = None
    """Weight of the chosen answer's cross entropy (mean over its tokens) beside the loss (null: 1 for cpo and orpo,
    else 0)."""
    desirable: NonNegativeFloat = 1.0
    """Weight of good answers in KTO."""
    undesirable: NonNegativeFloat = 1.0
    """Weight of bad answers in KTO."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the policy before training."""
        return self.name not in WITHOUT_REFERENCE

    @property
    def nll_weight(self) -> float:
        """Weight of the chosen answer's cross entropy."""
        return float(self.name in ("cpo", "orpo")) if self.nll is None else self.nll

    @model_validator(mode="after")
    def _consistent(self) -> PreferenceSettings:
        given = {key: getattr(self, key) for key, names in ONLY_FOR.items() if self.name not in names}
        foreign = [key for key, value in given.items() if value != type(self).model_fields[key].default]
        if foreign:
            names = " or ".join(ONLY_FOR[foreign[0]])
            raise ValueError(f"{foreign[0]}: {given[foreign[0]]:g} is for name: {names}, not for name: {self.name}")
        return self
