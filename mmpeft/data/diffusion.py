"""Pictures and texts as a denoiser is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmpeft.data.captions import captions_of
from mmpeft.data.diffusion_config import DiffusionData
from mmpeft.data.edges import coloured, edges
from mmpeft.data.framing import Frame, Framing
from mmpeft.data.image_sets import verify_images
from mmpeft.data.pictures import PictureFile, named, size_of
from mmpeft.data.readers import READERS
from mmpeft.data.readers.concepts import read_classes, read_concepts
from mmpeft.data.readers.folder import images_under
from mmpeft.data.samples import DataSplits, ImageSplit, Sample, listed
from mmpeft.data.splits import cut_pool

Reference = Callable[[Image.Image], Tensor]
SEEDS = 2**31


class DiffusionSplit(ImageSplit):
    """One split: dicts with ``id``, ``prompt`` and ``draw``, from which the objective draws all that is random.

    ``image`` (3, height, width) is in [-1, 1]; ``sizes`` are the numbers of its frame. Where there are such:
    ``control`` (3, height, width) in [0, 1]; ``mask`` (height, width), 1 where the picture counts; ``reference``, the
    picture prepared for the encoder of image prompts; and the same of a picture of the class under ``class_image``,
    ``class_prompt`` ... ``groups`` are the samples' shapes, where not all have the same.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        config: DiffusionData,
        framing: Framing,
        *,
        training: bool,
        classes: Mapping[int, Sequence[Sample]] | None = None,
        reference: Reference | None = None,
        margin: int = 8,
    ) -> None:
        self.samples, self.config, self.framing = samples, config, framing
        self.training, self.priors, self.reference, self.margin = training, classes or {}, reference, margin
        self.groups = (
            None if framing.step is None else [framing.bucket(size_of(sample.open)[::-1]) for sample in samples]
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        with named(sample.id):
            item = self._item(sample, rescale=self.config.rescale)
        if self.priors:
            others = self.priors[int(sample.label or 0)]
            prior = self._item(others[_draw(len(others))], rescale=False)
            item |= {f"class_{name}": value for name, value in prior.items()}
        return item

    def describe(self, index: int) -> str:
        """Return a sample's texts."""
        return ", ".join(map(repr, captions_of(self.samples[index])))

    def _item(self, sample: Sample, rescale: bool) -> dict[str, Any]:
        item: dict[str, Any] = {"id": sample.id, "draw": _draw(SEEDS)}
        prompt = self._prompt(sample)
        image = sample.open().convert("RGB")
        frame = self._frame(sample, _size(image), rescale)
        cut = frame.cut(image)
        item |= {"prompt": frame.prefix + prompt, "image": frame.placed(cut), "sizes": frame.numbers}
        if self.config.control is not None or sample.control is not None:
            item["control"] = frame.placed(self._control(sample, frame, cut), (0.0, 1.0))
        if rescale:
            item["mask"] = frame.inside(self.margin)
        elif self.config.masked:
            assert sample.mask is not None
            figure = np.asarray(frame.cut(sample.mask(), Image.Resampling.NEAREST))
            item["mask"] = torch.from_numpy((figure != 0).astype(np.float32))
        if self.reference is not None:
            item["reference"] = self.reference(image)
        return item

    def _frame(self, sample: Sample, size: tuple[int, int], rescale: bool) -> Frame:
        """Return a training picture's frame: of a few fixed ones, or drawn anew; the plain one in an evaluation."""
        if not (self.training and (self.config.augment or rescale)):
            return self.framing.plain(size)
        view = _draw(self.config.views or SEEDS)
        name = f"{sample.id}/{view}".encode()
        generator = torch.Generator().manual_seed(int.from_bytes(blake2b(name, digest_size=4).digest(), "big"))
        return self.framing.drawn(size, self.config.augment, rescale, generator)

    def _control(self, sample: Sample, frame: Frame, cut: Image.Image) -> Image.Image:
        if self.config.control == "edges":
            return edges(cut)
        if self.config.control == "mask":
            assert sample.mask is not None
            return coloured(frame.cut(sample.mask(), Image.Resampling.NEAREST))
        assert sample.control is not None
        return frame.cut(sample.control().convert("RGB"))

    def _prompt(self, sample: Sample) -> str:
        captions = captions_of(sample)
        if not self.training:
            return captions[0]
        caption = captions[_draw(len(captions))]
        return _changed(caption, self.config) if self.config.shuffle_tags or self.config.drop_tags else caption


def _changed(caption: str, config: DiffusionData) -> str:
    """Shuffle and drop the parts of a caption, but not those to keep; one part at least stays."""
    tags = [tag.strip() for tag in caption.split(",")]
    kept, loose = tags[: config.keep_tags], tags[config.keep_tags :]
    if config.shuffle_tags:
        loose = [loose[index] for index in torch.randperm(len(loose)).tolist()]
    left = [
        tag for tag, chance in zip(loose, torch.rand(len(loose)).tolist(), strict=True) if chance >= config.drop_tags
    ]
    return ", ".join([*kept, *left] or loose[:1])


def _draw(count: int) -> int:
    return int(torch.randint(count, ()))


def _size(image: Image.Image) -> tuple[int, int]:
    return image.height, image.width


def load_pictures(
    config: DiffusionData, resolution: int, factor: int, reference: Reference | None = None
) -> DataSplits:
    """Read pictures and texts and split them; ``factor`` is how many pixels one place of the latents has.

    Raises:
        ValueError: For anything wrong with the data: files are named, and how many there are.
    """
    for key, value in (("resolution", resolution), ("bucket_step", config.bucket_step)):
        if value is not None and value % factor:
            raise ValueError(f"data.{key}: {value} is no multiple of {factor}, the pixels of one place of the latents")
    cut, classes = _read(config)
    if config.verify:
        chosen = {sample.id: sample for part in (*cut.values(), *classes.values()) for sample in part}
        verify_images([*chosen.values()], config)
        controls = [replace(sample, open=sample.control) for sample in chosen.values() if sample.control is not None]
        verify_images(controls, config.model_copy(update={"path": config.control_path}))
    how: dict[str, Any] = {"config": config, "framing": Framing(resolution, config.bucket_step), "reference": reference}
    train, val, test = (
        DiffusionSplit(
            part, **how, training=name == "train", classes=classes if name == "train" else None, margin=factor
        )
        for name, part in cut.items()
    )
    return DataSplits(train, val, test, ())


def _read(config: DiffusionData) -> tuple[dict[str, list[Sample]], dict[int, list[Sample]]]:
    """Return the samples of each split, and the class pictures of each concept."""
    if config.name == "concepts":
        samples = read_concepts(config)
        return dict.fromkeys(("train", "validation", "test"), samples), read_classes(config)
    samples = READERS[config.name](config)
    if config.control_path is not None:
        samples = _with_controls(samples, config)
    return cut_pool(samples, config), {}


def _with_controls(samples: list[Sample], config: DiffusionData) -> list[Sample]:
    root = Path(str(config.control_path)).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.control_path: {str(root)!r} is not a folder")
    known = {path.relative_to(root).with_suffix(""): path for path in images_under(root)}
    bare = [sample.id for sample in samples if Path(sample.id).with_suffix("") not in known]
    if bare:
        raise ValueError(
            f"data.control_path: {len(bare)} of {len(samples)} pictures have no control image in {root}: {listed(bare)}"
        )
    paths = (known[Path(sample.id).with_suffix("")] for sample in samples)
    return [replace(sample, control=PictureFile(str(path))) for sample, path in zip(samples, paths, strict=True)]
