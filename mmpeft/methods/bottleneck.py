"""Bottleneck adapters: Houlsby, Pfeiffer, parallel, AdaptFormer and Adapter+ are one formula at different places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import BranchSite, Site
    from mmpeft.edits import Edit
    from mmpeft.edits.bottleneck import Reads


class BottleneckMethod(Method):
    """What methods with one bottleneck per sublayer have in common; they differ in what it reads and in defaults."""

    reads: ClassVar[Reads] = "output"
    """What the bottleneck reads; see `mmpeft.edits.Bottleneck`."""

    bottleneck: int = Field(default=48, ge=1)
    """Width of the bottleneck."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """The nonlinearity phi."""
    scale: float | Literal["learned", "channels"] = 1.0
    """Factor s on the adapter's output, its bias included; 'learned' starts at 1, as does one per channel."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout between the nonlinearity and U."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """How often the adapter is left out of a training sample."""
    norm: bool | Literal["out"] = False
    """LayerNorm on the adapter's input, or 'out', behind its scale; the two places of AdaptFormer's code."""
    init: Literal["zero", "normal"] = "zero"
    """U at zero, so that the model starts unchanged, or D and U from a truncated normal of std 0.01."""
    gate: Literal["auto", "token", "sequence"] | None = None
    """A gate from its input on the adapter (UniPELT): per token, or averaged; auto: averaged where all see all."""
    targets: tuple[Literal["attn", "mlp", "cross"], ...] = ("mlp",)
    """The sublayers that get an adapter."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One bottleneck per sublayer."""
        from mmpeft.anatomies.sites import BranchSite
        from mmpeft.edits import Bottleneck
        from mmpeft.edits.gate import gate_of

        options = self.model_dump(include={*BottleneckMethod.model_fields} - {"layers", "towers", "targets", "gate"})
        for site in anatomy.select(self.targets, BranchSite, self.layers, self.towers):
            made = Bottleneck(site, reads=self.reads_at(site), **options)
            made.input_gate = None if self.gate is None else gate_of(site, self.gate)
            yield site, made

    def reads_at(self, site: BranchSite) -> Reads:
        """Return what the bottleneck reads at a site."""
        return self.reads


class Sequential(BottleneckMethod):
    """What methods with a bottleneck behind a sublayer have in common: y + s U phi(D z), z made of the output y."""

    original_ln_before: bool | None = None
    """Whether z is LN(y + x), by the block's own layer norm and with the stream x that enters the sublayer; in blocks
    with norms in front y + x. False: z is y. Null: LN(y + x) where blocks have norms behind (BERT), else y."""

    def reads_at(self, site: BranchSite) -> Reads:
        """Return what the bottleneck reads: by the option or, where that is open, by the block's norms."""
        before = site.norm is not None if self.original_ln_before is None else self.original_ln_before
        if not before:
            return "output"
        return "stream" if site.norm is None else "normed"


class Pfeiffer(Sequential):
    """One sequential adapter after the MLP of each block: y + s U phi(D z) (Pfeiffer et al. 2021, arXiv:2005.00247).

    In post-norm blocks z is LN(y + x), normed by the block's own layer norm, so that the block goes on with
    LN(y + s U phi(D z) + x); in pre-norm blocks z is the MLP's output y, which AdaptFormer's code calls sequential.
    """

    name: ClassVar[str] = "pfeiffer"
    facts: ClassVar[Facts] = Facts(
        lacks=("generic",),
        small={"bottleneck": 4},
        rate=0.005,
        published=(
            Published(VIT_B, 156_768, {"bottleneck": 8}),
            Published(VIT_B, 1_779_840, {"bottleneck": 96}),
            Published(VIT_B, 894_528),
            Published("BERT-base", 894_528),
            Published("BERT-base", 75_313, {"layers": [0], "gate": "auto"}),
        ),
    )


class Houlsby(Sequential):
    """Sequential adapters after attention and after the MLP of each block (Houlsby et al. 2019, arXiv:1902.00751).

    The original trains the norms too: add ``NormTuning()`` to the adapter for that.
    """

    name: ClassVar[str] = "houlsby"
    facts: ClassVar[Facts] = Facts(
        lacks=("convnext", "generic"),
        small={"bottleneck": 4},
        rate=0.005,
        published=(
            Published(VIT_B, 313_536, {"bottleneck": 8}),
            Published(VIT_B, 2_379_264),
            Published("BERT-base", 1_789_056, {"bottleneck": 48}),
        ),
    )

    original_ln_before: bool | None = False
    bottleneck: int = Field(default=64, ge=1)
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    targets: tuple[Literal["attn", "mlp", "cross"], ...] = ("attn", "mlp")


class ParallelAdapter(BottleneckMethod):
    """A scaled adapter beside the MLP, on its normalised input: y + s U phi(D x) (He et al. 2022, arXiv:2110.04366)."""

    name: ClassVar[str] = "parallel_adapter"
    facts: ClassVar[Facts] = Facts(
        lacks=("generic",),
        small={"bottleneck": 4},
        learns={"bottleneck": 32},
        rate=0.001,
        published=(
            Published(VIT_B, 156_768, {"bottleneck": 8}),
            Published("BART-large", 25_202_688),
        ),
    )
    reads: ClassVar[Reads] = "input"

    bottleneck: int = Field(default=512, ge=1)
    scale: float | Literal["learned", "channels"] = 4.0


class AdaptFormer(BottleneckMethod):
    """A scaled adapter beside the MLP, on the residual stream before its norm (Chen et al. 2022, arXiv:2205.13535).

    Follows the authors' code: no LayerNorm in the adapter, s = 0.1 on its bias too, outside stochastic depth. What that
    code calls ``sequential`` is `Pfeiffer` here, and ``adapter_layernorm_option`` is ``norm``.
    """

    name: ClassVar[str] = "adaptformer"
    facts: ClassVar[Facts] = Facts(
        lacks=("convnext", "sd3", "generic"),
        small={"bottleneck": 4, "dropout": 0.0},
        rate=0.005,
        published=(
            Published(VIT_B, 27_660, {"bottleneck": 1}),
            Published(VIT_B, 156_768, {"bottleneck": 8}),
            Published(VIT_B, 1_189_632),
            Published(VIT_B, 1_266_532, classes=100, source="printed by the authors' code"),
        ),
    )
    reads: ClassVar[Reads] = "residual"

    bottleneck: int = Field(default=64, ge=1)
    scale: float | Literal["learned", "channels"] = 0.1
    dropout: float = Field(default=0.1, ge=0, lt=1)


class AdapterPlus(BottleneckMethod):
    """A sequential adapter behind each block, on the stream: z + s U phi(D z) (Steitz & Roth 2024, arXiv:2406.06820).

    s has one learned factor per channel. Not the frozen model at the start: D and U are both random, and small.
    ``targets: [attn]`` puts the adapter between attention and MLP.
    """

    name: ClassVar[str] = "adapter_plus"
    facts: ClassVar[Facts] = Facts(
        start="both matrices are random",
        lacks=("convnext", "gpt_neox", "sd3", "generic"),
        small={"bottleneck": 4, "drop_path": 0.0},
        published=(Published(VIT_B, 165_984),),
    )
    reads: ClassVar[Reads] = "stream"

    bottleneck: int = Field(default=8, ge=1)
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    scale: float | Literal["learned", "channels"] = "channels"
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    init: Literal["zero", "normal"] = "normal"
