"""LoRA and DoRA: low-rank deltas of linear layers and convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Edit, LowRank


class LoRA(Method):
    """Low-rank adaptation: W + (alpha / rank) B A at linear sites (Hu et al. 2021, arXiv:2106.09685).

    Of a convolution, A has the kernel and B is 1 x 1 (LoCon). B starts at zero, so the model starts unchanged; where A
    and B start from the weight, what they start at is taken off, and the model is unchanged but for rounding. Merges
    into the weight.
    """

    name: ClassVar[str] = "lora"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        small={"rank": 2, "alpha": 3},
        published=(
            Published(VIT_B, 147_456, {"rank": 4, "targets": "attn.qkv"}),
            Published(VIT_B, 294_912, {"rank": 8, "targets": "attn.qkv"}),
            Published(VIT_B, 294_912, {"rank": 8}),
            Published(VIT_B, 442_368, {"rank": 8, "targets": ["attn.q", "attn.k", "attn.v"]}),
            Published("Llama-2-7B", 4_194_304, {"rank": 8}),
            Published("Llama-3-8B", 3_407_872, {"rank": 8}),
            Published("Llama-2-7B", 19_988_480, {"rank": 8, "targets": ("attn.*", "mlp.*")}),
            Published("Llama-3-8B", 41_943_040, {"rank": 16, "targets": "all"}),
            Published("BERT-base", 294_912, {"rank": 8}),
            Published("GPT-2", 294_912, {"rank": 8, "targets": "attn.qkv"}),
        ),
    )
    fixes_a: ClassVar[bool] = False

    rank: int = Field(default=8, ge=1)
    """Rank of the delta."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale numerator; the rank when not given, so that the scale is 1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)."""
    init: Literal["uniform", "gaussian", "pissa", "olora"] = "uniform"
    """How A starts; with pissa (arXiv:2404.02948) and olora (arXiv:2406.01775) A and B come from the weight."""
    plus_ratio: float = Field(default=1.0, gt=0)
    """Learning rate of B over that of A (LoRA+, arXiv:2402.12354, which takes 16)."""
    gate: Literal["auto", "token", "sequence"] | None = None
    """A gate from its input on the delta (UniPELT): per token, or averaged; auto: averaged where all see all."""
    targets: str | tuple[str, ...] | None = None
    """Sites (attn.q, mlp.*, resnet.conv1 ...), patterns over paths, or 'all' linear ones; default attn.q and attn.v."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One delta per linear site or convolution."""
        from mmpeft.edits import ConvLowRank, LowRank

        yield from self._plan(anatomy, LowRank, ConvLowRank)

    def _plan(self, anatomy: Anatomy, linear: type[LowRank], convolution: type[LowRank]) -> Iterator[tuple[Site, Edit]]:
        from mmpeft.anatomies.sites import ConvSite
        from mmpeft.edits.gate import gate_of

        for site in anatomy.weight_sites(self.targets, self.layers, self.towers, ("attn.q", "attn.v")):
            edit = convolution if isinstance(site, ConvSite) else linear
            out, inner = site.weight_shape[0], math.prod(site.weight_shape[1:])
            if self.rank > out * inner:
                raise ValueError(
                    f"rank: {self.rank} is more than the weight of {site.path} has numbers ({inner} x {out}): there "
                    f"the model needs no more than {min(out, inner)}"
                )
            alpha = self.rank if self.alpha is None else self.alpha
            options: dict[str, Any] = {"rank": self.rank, "alpha": alpha, "dropout": self.dropout}
            options |= {"rank_stabilized": self.rank_stabilized, "start": self.init, "ratio": self.plus_ratio}
            made = edit(site, fixed=self.fixes_a, **options)
            made.input_gate = None if self.gate is None else gate_of(site, self.gate)
            yield site, made


class DoRA(LoRA):
    """LoRA with a learned magnitude per output feature: m (W + s B A) / |W + s B A| (Liu et al. 2024).

    arXiv:2402.09353. Starts unchanged, with m at the row norms of W. Merges into the weight.
    """

    name: ClassVar[str] = "dora"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        small={"rank": 2, "alpha": 3},
        published=(
            Published(VIT_B, 313_344, {"rank": 8}),
            Published("Llama-2-7B", 4_456_448, {"rank": 8}),
        ),
    )

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One decomposed delta per linear site or convolution."""
        from mmpeft.edits import ConvDecomposedLowRank, DecomposedLowRank

        yield from self._plan(anatomy, DecomposedLowRank, ConvDecomposedLowRank)


class LoRAFA(LoRA):
    """LoRA with a frozen random A: only B is trained (Zhang et al. 2023, arXiv:2308.03303).

    The backward pass needs A x, of the size of the rank, and not x: almost no activation is kept for it, with dropout
    too. Merges into the weight.
    """

    name: ClassVar[str] = "lora_fa"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        small={"rank": 2, "alpha": 3},
        published=(
            Published(VIT_B, 147_456, {"rank": 8}),
            Published("Llama-2-7B", 2_097_152, {"rank": 8}),
        ),
    )
    fixes_a: ClassVar[bool] = True


class CLIPLoRA(LoRA):
    """LoRA of q, k and v in both towers of CLIP with one setting for all tasks (Zanella and Ben Ayed 2024).

    arXiv:2405.18541. Scales by alpha / sqrt(rank); the dropout is drawn anew for each projection.
    """

    name: ClassVar[str] = "clip_lora"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        lacks=("convnext", "mlp"),
        small={"dropout": 0.0},
        published=(Published("ViT-B-16", 184_320, classes=100),),
    )

    rank: int = Field(default=2, ge=1)
    alpha: float | None = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    rank_stabilized: bool = True
    targets: str | tuple[str, ...] | None = ("attn.q", "attn.k", "attn.v")
