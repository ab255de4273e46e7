"""LLM-Adapters: the placements that its study of adapters in language models found best, one preset each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.facts import Facts, Published
from mmpeft.methods.lora import LoRA

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import LinearSite, Site
    from mmpeft.edits import Edit
    from mmpeft.edits.linear_bottleneck import Place

LAST = ("attn.out", "cross.out", "mlp.down")
"""Linear sites at the end of a sublayer: a series adapter stands behind these, and in front of all others."""


class LLMAdapterParallel(Method):
    """A bottleneck beside linear layers: y + s U tanh(D x), at the MLP's up and down (Hu et al. 2023).

    arXiv:2304.01933. U starts at zero, so the model starts unchanged.
    """

    name: ClassVar[str] = "llm_adapter_parallel"
    facts: ClassVar[Facts] = Facts(
        composed=True,
        lacks=("mixtral",),
        small={"bottleneck": 4},
        rate=0.001,
        published=(Published("Llama-2-7B", 247_463_936),),
    )

    bottleneck: int = Field(default=256, ge=1)
    """Width of the bottleneck."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "tanh"
    """The nonlinearity."""
    scale: float = 1.0
    """Factor s on the adapter's output."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout between the nonlinearity and U."""
    init: Literal["zero", "normal"] = "zero"
    """U at zero, or both matrices from N(0, 0.02^2), as the authors' code has it."""
    targets: str | tuple[str, ...] = ("mlp.up", "mlp.down")
    """Linear sites, patterns over module paths, or 'all'."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One bottleneck per linear site."""
        from mmpeft.edits import LinearBottleneck

        options = self.model_dump(exclude={"layers", "towers", "targets"})
        for site in anatomy.linear_sites(self.targets, self.layers, self.towers):
            yield site, LinearBottleneck(site, place=self._place(site), **options)

    def _place(self, site: LinearSite) -> Place:
        return "beside"


class LLMAdapterSeries(LLMAdapterParallel):
    """A bottleneck in series with linear layers: z + s U tanh(D z), behind the MLP's down (Hu et al. 2023).

    arXiv:2304.01933. At a layer that ends a sublayer z is its output, at all others its input. U starts at zero, so the
    model starts unchanged.
    """

    name: ClassVar[str] = "llm_adapter_series"
    facts: ClassVar[Facts] = Facts(
        composed=True,
        lacks=("mixtral",),
        small={"bottleneck": 4},
        rate=0.001,
        published=(Published("Llama-2-7B", 67_108_864),),
    )

    targets: str | tuple[str, ...] = ("mlp.down",)

    def _place(self, site: LinearSite) -> Place:
        return "behind" if site.name in LAST else "front"


class LLMAdapterLoRA(LoRA):
    """LoRA of q, k, v and the MLP's up and down with rank 32 and alpha 64 (Hu et al. 2023, arXiv:2304.01933)."""

    name: ClassVar[str] = "llm_adapter_lora"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        composed=True,
        lacks=("convnext", "mlp", "mixtral"),
        small={"rank": 2, "alpha": 3, "dropout": 0.0},
        rate=0.001,
        published=(Published("Llama-2-7B", 56_098_816),),
    )

    rank: int = Field(default=32, ge=1)
    alpha: float | None = Field(default=64.0, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: str | tuple[str, ...] | None = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")
