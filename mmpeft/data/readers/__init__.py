"""One file per kind of data set: each turns a `DataConfig` into samples, and knows nothing of splits or models."""

from __future__ import annotations

from collections.abc import Callable

from mmpeft.data.config import DataConfig
from mmpeft.data.readers.captions import read_captions
from mmpeft.data.readers.digits import read_digits
from mmpeft.data.readers.few_shot import name_few_shot, read_few_shot
from mmpeft.data.readers.fgvc import read_fgvc
from mmpeft.data.readers.folder import read_folder
from mmpeft.data.readers.hugging_face import read_datasets
from mmpeft.data.readers.masks import read_mask_classes, read_masks
from mmpeft.data.readers.scenes import mask_classes_of_scenes, read_scenes
from mmpeft.data.readers.table import read_table
from mmpeft.data.readers.vtab import name_vtab, read_vtab
from mmpeft.data.samples import Sample

READERS: dict[str, Callable[[DataConfig], list[Sample]]] = {
    "digits": read_digits,
    "scenes": read_scenes,
    "folder": read_folder,
    "table": read_table,
    "datasets": read_datasets,
    "masks": read_masks,
    "captions": read_captions,
    "vtab": read_vtab,
    "fgvc": read_fgvc,
    "few_shot": read_few_shot,
}
"""Readers by the name in the configuration."""
CLASS_NAMES: dict[str, Callable[[DataConfig], tuple[str, ...]]] = {"vtab": name_vtab, "few_shot": name_few_shot}
"""Class names in their order, of data where labels are numbers and this order is not the alphabet's."""
MASK_CLASSES: dict[str, Callable[[DataConfig], tuple[str, ...]]] = {
    "masks": read_mask_classes,
    "scenes": mask_classes_of_scenes,
}
"""The classes of the pixels, where a reader's samples have masks."""
