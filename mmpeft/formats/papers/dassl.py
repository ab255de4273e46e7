"""Directories of Dassl's trainers: ``model.pth.tar-{epoch}`` in a folder, with a text file ``checkpoint``.

Which method it is follows from the tensors; the folder's name doesn't tell (``prompt_learner`` of VPT holds the whole
CLIP, and so does ``VLPromptLearner`` of two methods).
"""

from __future__ import annotations

import re
from pathlib import Path

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger, state
from mmpeft.formats.papers import dassl_methods
from mmpeft.formats.papers.dassl_methods import Options
from mmpeft.formats.torch_file import read_flat
from mmpeft.settings import nearest

FOLDERS = ("prompt_learner", "MultiModalPromptLearner", "VLPromptLearner", "clip_adapter")
FILE = re.compile(r"model(-best)?\.pth\.tar(-\d+)?")
SIGNS = {
    r"(compound_prompts_text\.\d+|proj\.weight)": dassl_methods.maple,
    r"meta_net\.linear1\.weight": dassl_methods.cocoop,
    r"fc\.0\.weight": dassl_methods.clip_adapter,
    r"image_encoder\.VPT|(image|text)_encoder\.transformer\.resblocks\.\d+\.VPT_shallow": dassl_methods.independent,
    r"ctx": dassl_methods.coop,
}
"""Readers by names that the tensors of a method have, the most telling ones first."""
FACTS = {"coop": ("position",), "clip_adapter": ("ratio",)} | dict.fromkeys(("maple", "ivlp", "promptsrc"), ("init",))
"""The options that have a say in a method."""
BACKBONE = (
    r"token_(prefix|suffix)|logit_scale|dtype",
    r"(ZS_)?image_encoder\.(?!VPT$)(?!transformer\.resblocks\.\d+\.VPT_shallow$).*",
    r"text_encoder\.(?!transformer\.resblocks\.\d+\.VPT_shallow$).*",
)

LONGEST = 100
"""Bytes of a checkpoint's name."""


def read(source: Path, options: Options) -> Imported:
    """Return the method's learned tensors; token prefixes and suffixes and the frozen CLIP are left out."""
    path = _file(source, options)
    values = state(read_flat(path), "state_dict")
    ledger = Ledger(path, {key.removeprefix("prompt_learner."): value for key, value in values.items()})
    reader = next((read_kind for sign, read_kind in SIGNS.items() if sign in ledger), dassl_methods.coop)
    methods = reader(ledger, options)
    left = ledger.leave(*BACKBONE)
    notes = [f"{path.name}: {' and '.join(method.label() for method in methods)}"]
    notes.append(f"left out: {left} tensors of the frozen CLIP and of the texts of the training's class names")
    return Imported(methods, ledger.close(), notes, ("model", *FACTS.get(methods[0].name, ())))


def _file(source: Path, options: Options) -> Path:
    """Return the checkpoint: the source itself, or in its folder the one of the epoch that is asked for."""
    if source.is_file():
        return source
    folders = [source, *(source / name for name in FOLDERS)]
    files = {file.name: file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())}
    known = [name for name in files if FILE.fullmatch(name)]
    if not known:
        raise ValueError(f"{source} holds no model.pth.tar-EPOCH, alone or in one of {', '.join(FOLDERS)}")
    name = _name(source, options, files)
    if name not in known:
        raise ValueError(f"epoch: {source} holds no {name!r}{nearest(name, known)}")
    return files[name]


def _name(source: Path, options: Options, files: dict[str, Path]) -> str:
    if options.epoch is not None:
        return "model-best.pth.tar" if options.epoch == "best" else f"model.pth.tar-{options.epoch}"
    if "checkpoint" not in files or not files["checkpoint"].is_file():
        raise ValueError(f"epoch: {source} has no text file 'checkpoint' that names the latest: give the epoch")
    with files["checkpoint"].open("rb") as file:
        return file.read(LONGEST).decode("utf-8", errors="replace").strip()


FORMAT = Foreign(
    "dassl",
    r"token_prefix$|compound_prompts_text|meta_net\.linear|VPT_shallow$|^state_dict\.fc\.0\.weight$",
    read,
    Options,
)
convert = FORMAT.convert
