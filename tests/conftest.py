"""The matrix: every registered method on every kind of tiny model that it supports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tiny_models import MODELS

import mmpeft
from mmpeft.methods.facts import Facts

GENERIC = {"mlp"}
DECODERS = {"llama", "gpt2", "gpt_neox", "mixtral"}
LANGUAGE = DECODERS | {"bert", "t5"}
OPEN_CLIP = {"open_clip", "open_clip_attention"}
HUGGING_FACE = {"hf_clip", "siglip"}
TWO_TOWERS = OPEN_CLIP | HUGGING_FACE | {"zero_shot"}
READS_WEIGHTS = {"open_clip", "siglip", "zero_shot"}
"""With ``nn.MultiheadAttention``, which computes another way, not equal to the bit, when a weight wants gradients."""
WITHOUT_ATTENTION = {"convnext", "mlp"}
"""Where targets have to be named, for the default ones are an attention's."""
DENOISERS = {"unet", "sd3"}
STAGED = {"swin", "swin_v2", "convnext"}
ONE_TOWER = MODELS.keys() - TWO_TOWERS
KINDS = {
    "vision": ONE_TOWER - DENOISERS - GENERIC - LANGUAGE,
    "staged": STAGED,
    "clips": OPEN_CLIP | HUGGING_FACE,
    "hf_clips": HUGGING_FACE,
    "denoisers": DENOISERS,
    "generic": GENERIC,
    "language": LANGUAGE,
}
"""What a method's facts call models of a kind; a single model by its name."""


def models_of(names: Iterable[str]) -> set[str]:
    """Return the models that names of models and kinds mean."""
    unknown = set(names) - KINDS.keys() - MODELS.keys()
    assert not unknown, f"neither a kind of model nor a model: {unknown}"
    return set().union(*(KINDS.get(name, {name}) for name in names))


def lacking(method: str) -> set[str]:
    """Return the models that have no site for a method."""
    return models_of(mmpeft.methods()[method].facts.lacks)


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    method: str
    model: str

    @classmethod
    def at_home(cls, method: str) -> Case:
        """Return a method's cell on the first of a plain ViT, a zero-shot classifier and a Llama that has its site."""
        without = lacking(method)
        return cls(method, next(model for model in ("vit", "zero_shot", "llama") if model not in without))

    @property
    def facts(self) -> Facts:
        """What is known of the method."""
        return mmpeft.methods()[self.method].facts

    @property
    def routable(self) -> bool:
        """Whether samples of one batch can have different adapters."""
        return self.model not in models_of(self.facts.unroutable)

    def __str__(self) -> str:
        return f"{self.method}-{self.model}"

    def specification(self) -> dict[str, Any]:
        """Return the method with small sizes, as in a YAML file."""
        named = mmpeft.methods()[self.method].model_fields.get("targets")
        attends = self.model not in WITHOUT_ATTENTION or named is None or named.default is not None
        return {"method": self.method, **self.facts.small} | ({} if attends else {"targets": "all"})

    def build(self, seed: int = 0) -> Any:
        """Return the model, in eval mode; no parameter is at zero or one, where an edit could hide."""
        import torch

        torch.manual_seed(seed)
        model = MODELS[self.model]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        if self.model == "zero_shot":
            model.reset()
        return model.requires_grad_(self.model not in READS_WEIGHTS)

    def adapt(self, model: Any, name: str = "main", seed: int | None = None, **options: Any) -> Any:
        """Graft the method into a model; with a ``seed`` every adapter weight is moved away from its start."""
        import torch

        adapters = mmpeft.adapt(model, self.specification() | options, name=name)
        if self.method == "tip_adapter":
            (cache,) = adapters._edits(name)
            cache.fill(torch.randn(6, 16, generator=torch.Generator().manual_seed(3)), torch.arange(6) % 3)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in adapters.parameters(name):
                    parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
        return adapters

    def batch(self, size: int = 3) -> Any:
        """Return an input: images, or token ids."""
        import torch

        generator = torch.Generator().manual_seed(1)
        if self.model in LANGUAGE:
            return torch.randint(0, 50, (size, 7), generator=generator)
        if self.model in DENOISERS:
            return torch.randn(size, 4, 8, 8, generator=generator)
        return torch.randn(size, 3, 32, 32, generator=generator)

    def run(self, model: Any, batch: Any = None) -> Any:
        """Return the model's output tensor; both heads of a distilled model side by side."""
        import torch

        batch = self.batch() if batch is None else batch
        if self.model in OPEN_CLIP | HUGGING_FACE:
            return self._run_towers(model, batch)
        if self.model == "t5":
            return model(input_ids=batch, decoder_input_ids=batch.flip(1)).logits
        if self.model in DENOISERS:
            return self._denoise(model, batch)
        output = model(batch)
        if self.model in DECODERS:
            return output.logits
        if self.model == "bert":
            return torch.cat([output.last_hidden_state.flatten(1), output.pooler_output], -1)
        return torch.cat(output, -1) if isinstance(output, tuple) else output

    def same(self, left: Any, right: Any) -> bool:
        """Whether two outputs are equal to the bit; BLAS rounds by the alignment of memory where SigLIP's residual
        stream is not contiguous, and where FacT's factors of rank 3 lie anywhere in a file."""
        import torch

        rounded = self.model == "siglip" or (self.method, self.model) == ("fact", "sd3")
        return torch.allclose(left, right, 1e-5, 1e-5) if rounded else torch.equal(left, right)

    def _run_towers(self, model: Any, images: Any) -> Any:
        import torch

        text = torch.tensor([*range(5, 45, 5), 49]).expand(len(images), -1)
        if self.model in HUGGING_FACE:
            output = model(input_ids=text, pixel_values=images)
            found = torch.cat(
                [output.image_embeds, output.text_embeds, output.logits_per_image.diagonal()[:, None]], -1
            )
        else:
            image, words, scale = model(images, text)
            found = torch.cat([image, words, scale.expand(len(image), 1)], -1)
        return found * torch.linspace(0.5, 2, found.shape[-1])

    def _denoise(self, model: Any, sample: Any) -> Any:
        """Return the noise that a denoiser finds in a sample, by a text of five words, at one step."""
        import torch

        generator = torch.Generator().manual_seed(2)
        text, pooled = (torch.randn(shape, generator=generator).to(sample) for shape in ((1, 5, 24), (1, 12)))
        time, size = torch.full((len(sample),), 7), len(sample)
        if self.model == "unet":
            return model(sample, time, text.expand(size, -1, -1)).sample
        return model(sample, text.expand(size, -1, -1), pooled.expand(size, -1), time).sample


APART = {name for name, method in mmpeft.methods().items() if method.facts.tested_by}
"""Methods that need more than a model."""
SOME = {"vit", "open_clip", "gpt2", "llama", "bert", "t5"}
"""Where methods that others make up are tried: these others are, everywhere."""
SUPPORTED = [
    Case(m, k)
    for m in mmpeft.methods().keys() - APART
    for k in MODELS
    if k not in lacking(m) and (k in SOME or not mmpeft.methods()[m].facts.composed)
]
SUPPORTED.sort(key=str)
HOMES = [Case.at_home(m) for m in sorted(mmpeft.methods().keys() - APART)]
UNSUPPORTED = [Case(m, k) for m in mmpeft.methods() for k in MODELS if k in lacking(m)]
ONE = {**dict.fromkeys((*DENOISERS, *GENERIC), "lora"), "unet": "dora"}
COMPILED = [c for c in SUPPORTED if c.model == "vit" or c.method == ONE.get(c.model, "ssf")]
COMPILED = [c for c in COMPILED if c.model not in ("gpt2", "gpt_neox", "mixtral")]
"""Every method on one model, and on every kind of model one method."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``case`` every supported cell, ``lacking`` every other, ``compiled`` those to compile, ``home`` one each."""
    values = {"case": SUPPORTED, "lacking": UNSUPPORTED, "compiled": COMPILED, "home": HOMES}

    for name in values.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, values[name], ids=str)


ONE_THREAD = (
    "injection",
    "anatomies",
    "methods",
    "kernels",
    "training",
    "diffusion",
    "llm",
    "edits",
    "handle",
    "inspection",
    "prefix_cache",
    "run",
)
"""Folders whose tests are too small for several threads, or compare runs to the bit."""


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.path.parent.name not in ONE_THREAD:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_case() -> type[Case]:
    """Return the maker of single cells, by method and model."""
    return Case
