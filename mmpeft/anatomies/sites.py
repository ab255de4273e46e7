"""Sites: the named places of a model where an edit can attach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from mmpeft.kernels.rows import Rows

Switch = tuple[nn.Module, str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """A named place in a model.

    ``name`` is the field's term (``attn.q``), ``path`` the unique address of the site inside its model
    (``blocks.0.attn.q``), ``host`` the module whose forward an edit extends and ``host_path`` its path.
    ``switches`` are attributes (module, name, value) with which the module's forward calls the host, set while it does;
    where there is none, ``carrier`` is the module that reads the host's weights itself, with a forward that doesn't.
    A ``shared`` weight the base uses in another place too, where an edit here leaves it alone: it is not merged.
    """

    name: str
    path: str
    host: nn.Module
    host_path: str
    tower: str = ""
    layer: int | None = None
    switches: tuple[Switch, ...] = ()
    carrier: tuple[nn.Module, Callable[..., Any]] | None = None
    shared: bool = False

    @property
    def kind(self) -> str:
        """The kind of site: ``linear``, ``conv``, ``norm``, ``embed``, ``branch``, ``sequence`` or ``parameters``."""
        return type(self).__name__.removesuffix("Site").lower()

    @property
    def shape(self) -> str:
        """What an edit sees here, for tables."""
        return ""


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightSite(Site):
    """A layer of one weight W (out, in, ...), of which ``rows`` are this site's, and perhaps a bias.

    ``weight`` and ``bias`` are the host's names for them; ``transposed`` ones are (in, out) in the host.
    """

    rows: Rows | None = None
    transposed: bool = False
    weight: str = "weight"
    bias: str = "bias"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of W, or of its slice."""
        raise TypeError(f"{type(self).__name__} has no weight")


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearSite(WeightSite):
    """``y = W x + b`` with W of shape (out_features, in_features), perhaps a slice of a fused weight.

    Where the names of W and b are not the usual ones (``in_proj_weight``), the host computes more than this projection.
    """

    in_features: int
    out_features: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Features out and in."""
        return self.out_features, self.in_features

    @property
    def shape(self) -> str:
        """Features in and out, and the rows of the fused weight."""
        shown = f"{self.rows.start}:{self.rows.stop}" if isinstance(self.rows, slice) else self.rows
        return f"{self.in_features} -> {self.out_features}" + (f" rows {shown}" if shown else "")


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvSite(WeightSite):
    """A convolution of images (batch, channels, height, width) without groups: W is (out, in, height, width)."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Channels out and in, and the kernel."""
        return self.out_channels, self.in_channels, *self.kernel

    @property
    def shape(self) -> str:
        """Channels in and out, and the kernel."""
        return f"{self.in_channels} -> {self.out_channels}, {self.kernel[0]} x {self.kernel[1]}"


@dataclass(frozen=True, eq=False, kw_only=True)
class NormSite(Site):
    """A normalisation layer with a weight (and perhaps a bias) of ``width`` elements; channels on ``axis``.

    ``activated`` tells that the layer ends in an activation, behind which a change is no change of its weight.
    """

    width: int
    axis: int = -1
    activated: bool = False

    @property
    def shape(self) -> str:
        """Width in channels."""
        return str(self.width)


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbedSite(NormSite):
    """The layer that turns patches or tokens into vectors of ``width``; its output channels lie on ``axis``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BranchSite(Site):
    """A sublayer. ``host`` returns its output; ``entry`` receives the residual stream, ``exit`` what is added to it.

    The sublayer's input is that of ``source``, where it is not the host's own (BERT's attention ends in a module of its
    own). ``entry`` and ``exit`` are None where the block has no module of its own at these places; ``prefix`` is the
    number of tokens in front of the patches, None where the tokens are no patches. In a ``parallel`` block attention
    and MLP read the same stream, which is whole again only behind the block. ``norm`` is the layer that reads the sum
    of stream and sublayer (post-norm, as in BERT); None in pre-norm blocks.
    """

    width: int
    source: nn.Module | None = None
    entry: nn.Module | None = None
    exit: nn.Module | None = None
    prefix: int | None = None
    parallel: bool = False
    norm: nn.Module | None = None

    @property
    def shape(self) -> str:
        """Width of the residual stream."""
        return str(self.width)


@dataclass(frozen=True, eq=False, kw_only=True)
class SequenceSite(Site):
    """The tokens that flow through a tower's blocks, (batch, sequence, width), after position embedding.

    ``host`` is the model whose methods return features from between the blocks.
    ``start`` is the number of tokens that keep their place in front (class and register tokens), ``patch_area`` the
    pixels per patch, and ``extend`` adjusts a block's other arguments (rotary embeddings, masks) to inserted tokens.
    ``norm`` is the layer between position embedding and the first block, if there is one.
    """

    width: int
    blocks: tuple[nn.Module, ...]
    start: int
    patch_area: int
    extend: Callable[[dict[str, Any], int], dict[str, Any]]
    norm: nn.Module | None = None

    @property
    def shape(self) -> str:
        """Blocks and width."""
        return f"{len(self.blocks)} blocks x {self.width}"


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptSite(Site):
    """The words of a text tower: ``host`` turns ids (batch, length) into (batch, length, width), without position.

    ``start`` is the number of ids in front of the first word, ``end_of_text`` whether the greatest id of a text marks
    its end; ``blocks`` take (batch, length, width).
    """

    width: int
    blocks: tuple[nn.Module, ...]
    start: int
    end_of_text: bool

    @property
    def shape(self) -> str:
        """Blocks and width."""
        return f"{len(self.blocks)} blocks x {self.width}"


@dataclass(frozen=True, eq=False, kw_only=True)
class WordsSite(Site):
    """The words that enter a language tower: ``host`` takes their ids, or what ``embedding`` makes of these.

    Both by name - ``input_ids`` (batch, length), ``inputs_embeds`` (batch, length, width) - and with an
    ``attention_mask`` (batch, length). ``reader`` is the tower that is handed what this one returns, with the same mask
    as ``encoder_attention_mask``.
    """

    width: int
    embedding: nn.Module
    reader: nn.Module | None = None

    @property
    def shape(self) -> str:
        """Width of a word."""
        return str(self.width)


@dataclass(frozen=True, eq=False, kw_only=True)
class LadderSite(Site):
    """A language tower ``host`` beside which a narrow copy of itself can run on the outputs of its ``blocks``.

    ``end`` makes the tower's final hidden states (batch, sequence, width). ``reader`` is the tower that attends to
    this one's output, and a tower that so ``listens`` needs the other's narrow states. ``narrow`` makes the copy, from
    a divisor of all widths and the indices of the blocks that it has.
    """

    width: int
    blocks: tuple[nn.Module, ...]
    end: nn.Module
    reader: nn.Module | None
    listens: bool
    narrow: Callable[[int, list[int]], nn.Module]

    @property
    def shape(self) -> str:
        """Blocks and width."""
        return f"{len(self.blocks)} blocks x {self.width}"


@dataclass(frozen=True, eq=False, kw_only=True)
class ParametersSite(Site):
    """Parameters that ``host`` owns itself, by local name; ``tied`` are (module, its name, name here) of the same.

    ``derived`` ones follow from other parameters (class embeddings from the text tower): training all leaves them out.
    """

    names: tuple[str, ...]
    tied: tuple[tuple[nn.Module, str, str], ...] = ()
    derived: bool = False

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The frozen tensors of the base."""
        return {name: getattr(self.host, name) for name in self.names}

    @property
    def shape(self) -> str:
        """Names of the parameters."""
        return ", ".join(self.names)


@dataclass(frozen=True, eq=False, kw_only=True)
class FeaturesSite(Site):
    """A tower's pooled features (batch, width): what enters the head, or leaves the projection into the joint space.

    They are the host's ``input`` or ``output``; ``model`` made them, from images of ``channels`` or (None) from text.
    """

    width: int
    model: nn.Module
    channels: int | None = None
    point: Literal["input", "output"] = "output"

    @property
    def shape(self) -> str:
        """Width of the features."""
        return str(self.width)


@dataclass(frozen=True, eq=False, kw_only=True)
class LogitsSite(Site):
    """Logits (batch, classes) that ``host`` makes from features (batch, width)."""

    width: int
    classes: int

    @property
    def shape(self) -> str:
        """Width and classes."""
        return f"{self.width} -> {self.classes}"


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionSite(Site):
    """A call of the attention kernel, within the forward of ``host``, by torch's ``scaled_dot_product_attention``.

    Keys have ``heads`` heads of ``key_width`` features (of queries there may be more), values ``value_width``; zero
    where that is not known. ``refusal`` says why the call can't be reached, and what to do. ``turn`` moves keys (heads,
    tokens, width) by a number of rotary positions, where the model has these.
    """

    heads: int = 0
    key_width: int = 0
    value_width: int = 0
    refusal: str = ""
    turn: Callable[[Tensor, int], Tensor] | None = None

    @property
    def shape(self) -> str:
        """Heads of keys and their width."""
        return f"{self.heads} heads x {self.key_width}" if self.heads else ""


@dataclass(frozen=True, eq=False, kw_only=True)
class PositionsSite(Site):
    """A table of learned positions: ``host`` takes their numbers."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossAttentionSite(Site):
    """An attention whose queries may look elsewhere too: ``host`` receives what they found (batch, queries, width).

    ``query``, ``key`` and ``value`` are the projections in front of the kernel; queries have ``width`` features in
    ``heads`` heads, keys and values come from ``context`` features.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    heads: int
    width: int
    context: int

    @property
    def shape(self) -> str:
        """Heads, width and width of the context."""
        return f"{self.heads} heads x {self.width // self.heads}, context {self.context}"


@dataclass(frozen=True, eq=False, kw_only=True)
class DenoiserSite(Site):
    """A denoiser as a whole, whose decoder adds residuals to the hidden states of its encoder.

    ``copy`` makes a trainable encoder of a denoiser: its ``channels`` per hidden state, and from named arguments and a
    hint (batch, ``channels``, height, width) to those states. ``bound`` names a denoiser's arguments, and
    ``with_residuals`` adds residuals to them, ``with_features`` feature maps behind the blocks of its encoder, which
    have ``widths`` channels and a place for each ``strides`` places of the sample. Its text has ``context`` features.
    """

    context: int
    channels: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    copy: Callable[[nn.Module], Any]
    bound: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], dict[str, Any]]
    with_residuals: Callable[[dict[str, Any], list[Tensor]], dict[str, Any]]
    with_features: Callable[[dict[str, Any], list[Tensor]], dict[str, Any]]

    @property
    def shape(self) -> str:
        """Width of the context."""
        return f"context {self.context}"
