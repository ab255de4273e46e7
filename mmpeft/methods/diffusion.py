"""Methods of diffusion models: ControlNet, T2I-Adapter, IP-Adapter, Custom Diffusion, textual inversion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, NonNegativeInt, PositiveInt

from mmpeft.methods.base import Method
from mmpeft.methods.facts import Facts

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import DenoiserSite, Site
    from mmpeft.edits import Edit


class ControlNet(Method):
    """A trainable copy of the denoiser's encoder that follows a control image (Zhang et al. 2023, arXiv:2302.05543).

    The copy sees the sample, the time and the text, and the control image through a small network in front of it. Each
    of its hidden states h_i is added as Z_i h_i to the one that the frozen encoder hands to the decoder; the 1x1
    convolutions Z_i start at zero, so the model starts unchanged. The image, in [0, 1], comes by
    ``adapters.given({name: image})``; the adapter's weight is the conditioning scale. Several work at once.
    """

    name: ClassVar[str] = "controlnet"
    facts: ClassVar[Facts] = Facts(tested_by="tests/methods/test_diffusion_matrix.py")

    channels: PositiveInt = 3
    """Channels of the control image."""
    widths: tuple[PositiveInt, ...] = Field(default=(16, 32, 96, 256), min_length=1)
    """Widths of the hint encoder, which halves height and width between each two of them."""
    guess: bool = False
    """Weigh deep states more, and control only the conditional half of a batch: works without a text. A `ControlImage`
    that is given says it for itself."""
    pooled: bool = False
    """Take each state's mean over its places (shuffle models)."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One branch per denoiser."""
        from mmpeft.edits import ControlBranch

        site = _denoiser(anatomy, self.towers)
        options = self.model_dump(include={"channels", "widths", "guess", "pooled"})
        yield site, ControlBranch(site, **options)


class IPAdapter(Method):
    """Image prompts: a second cross-attention to tokens made of an image (Ye et al. 2023, arXiv:2308.06721).

    In each cross-attention, Attention(q, K f, V f) of the image's tokens f is added to that of the text; K and V start
    as copies of those for the text. Not the frozen model at the start. The features of the images, (batch, width) or
    (batch, images, width), come by ``adapters.given({name: features})``, with masks as an ``ImagePrompt``; the
    adapter's weight is the scale.
    """

    name: ClassVar[str] = "ip_adapter"
    facts: ClassVar[Facts] = Facts(tested_by="tests/methods/test_diffusion_matrix.py")

    features: PositiveInt = 1024
    """Width of the image features (CLIP ViT-H: 1024)."""
    tokens: PositiveInt = 4
    """Tokens per image."""
    resampler: bool = False
    """Look at all positions of an image, (batch, positions, width), through learned queries (IP-Adapter Plus)."""
    depth: PositiveInt = Field(default=4, le=1000)
    """Layers of the resampler."""
    heads: PositiveInt = 12
    """Heads of the resampler, each of 64 features."""
    width: PositiveInt = 768
    """Width of the resampler."""
    scale: float | dict[str, float] = Field(default=1.0, examples=[0.6, {"up_blocks.0.*": 1.0}])
    """Factor on the second attention; or factors by pattern over the attentions' paths, and 0 where none matches."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """The tokens at the denoiser, then one attention per cross-attention of the layers."""
        from mmpeft.anatomies.sites import CrossAttentionSite
        from mmpeft.edits import DecoupledAttention, ImageTokens, Resampler
        from mmpeft.edits.weights import check_patterns, weight_at

        sites = anatomy.select(("cross.attention",), CrossAttentionSite, self.layers, self.towers)
        check_patterns(self.scale, sites, "scale")
        root = _denoiser(anatomy, self.towers)
        size = {"width": self.features, "tokens": self.tokens}
        image = ImageTokens(root, **size)
        if self.resampler:
            image = Resampler(root, **size, depth=self.depth, heads=self.heads, inner=self.width)
        yield root, image
        for site in sites:
            yield site, DecoupledAttention(site, image, scale=weight_at(self.scale, site))


class T2IAdapter(Method):
    """A small network of a control image, beside the denoiser's encoder (Mou et al. 2023, arXiv:2302.08453).

    Its map of each resolution is added behind the encoder's block of that resolution. It sees neither the text nor the
    time, so it runs once per image. Not the frozen model at the start. The image, in [0, 1], comes by
    ``adapters.given({name: image})``; the adapter's weight is the scale.
    """

    name: ClassVar[str] = "t2i_adapter"
    facts: ClassVar[Facts] = Facts(tested_by="tests/methods/test_diffusion_matrix.py")

    channels: PositiveInt = 3
    """Channels of the control image."""
    factor: PositiveInt = 8
    """Pixels per place, in each direction, where the first feature map joins (SDXL: 16, for its first block halves)."""
    depth: PositiveInt = Field(default=2, le=1000)
    """Residual blocks per stage (light: 4)."""
    light: bool = False
    """Work at a quarter of the width."""
    middle: bool = False
    """One more map, behind the middle block (SDXL, with factor 16)."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One network per denoiser."""
        from mmpeft.edits import FeatureMaps

        site = _denoiser(anatomy, self.towers)
        yield site, FeatureMaps(site, **self.model_dump(include={"channels", "factor", "depth", "light", "middle"}))


class CustomDiffusion(Method):
    """Keys and values of the cross-attention, trained whole (Kumari et al. 2023, arXiv:2212.04488).

    No gradient goes through the first position, the start of the text. A new word for the concept comes by
    ``TextualInversion`` in the same adapter. Starts unchanged; merges into the weights.
    """

    name: ClassVar[str] = "custom_diffusion"
    facts: ClassVar[Facts] = Facts(tested_by="tests/methods/test_diffusion_matrix.py")

    queries: bool = False
    """Train queries and output projections too (the authors advise it for faces)."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """A copy of each projection."""
        from mmpeft.anatomies.anatomy import parameters_site
        from mmpeft.anatomies.sites import LinearSite
        from mmpeft.edits import Unfreeze

        names = ("cross.k", "cross.v", *(("cross.q", "cross.out") if self.queries else ()))
        for site in anatomy.select(names, LinearSite, self.layers, self.towers):
            parameters = parameters_site(site.host, site.host_path, name=site.name, tower=site.tower)
            yield parameters, Unfreeze(parameters, detach_first=site.name in names[:2])


class TextualInversion(Method):
    """New words of a text encoder, as rows beside its embedding (Gal et al. 2022, arXiv:2208.01618).

    The embedding itself is untouched, also by weight decay. Adapt the pipeline, so that its tokenizer learns the words.
    """

    name: ClassVar[str] = "textual_inversion"
    facts: ClassVar[Facts] = Facts(tested_by="tests/methods/test_diffusion_matrix.py")

    towers: str | tuple[str, ...] = "text"
    words: tuple[str, ...] = Field(default=("<new1>",), min_length=1)
    """The words, in a form that no text has by chance."""
    vectors: PositiveInt = 1
    """Vectors per word; a pipeline of diffusers writes the further ones behind the word by itself."""
    init: str | None = None
    """Known words to start from, in turn; null starts at random."""
    ids: tuple[NonNegativeInt, ...] | None = None
    """Token ids of the vectors; the tokenizer says them."""
    start: tuple[NonNegativeInt, ...] = ()
    """Token ids of ``init``; the tokenizer says them."""

    def new_words(self) -> tuple[str, ...]:
        """Return each word, and behind it ``word_1``, ``word_2`` ... for its further vectors."""
        return tuple(f"{w}_{i}" if i else w for w in self.words for i in range(self.vectors))

    def resolve(self, anatomy: Anatomy) -> Self:
        """Ask the tokenizer for the ids; one that has other words already may give others than those saved."""
        if anatomy.ids_for is None or anatomy.words is None:
            return self
        start = anatomy.words(self.init) if self.init else ()
        return self.model_copy(update={"ids": anatomy.ids_for(self.new_words()), "start": start})

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One set of vectors per text encoder."""
        from mmpeft.anatomies.sites import PromptSite
        from mmpeft.edits import NewWords

        for site in anatomy.select(("prompt",), PromptSite, towers=self.towers):
            if self.ids is None:
                raise ValueError(f"words: {list(self.words)} need a tokenizer: adapt the pipeline, or give ids")
            yield site, NewWords(site, ids=self.ids, start=self.start)


def _denoiser(anatomy: Anatomy, towers: str | tuple[str, ...]) -> DenoiserSite:
    from mmpeft.anatomies.sites import DenoiserSite

    return anatomy.select(("denoiser",), DenoiserSite, towers=towers)[0]
