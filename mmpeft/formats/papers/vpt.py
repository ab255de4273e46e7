"""VPT's ``prompt_ep{epoch}.pth``: numpy arrays of prompts without a head; or the prompts inside a whole model."""

from __future__ import annotations

from pathlib import Path

import torch

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger, state
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import VPT
from mmpeft.settings import Settings

FILE = ("shallow_prompt", "deep_prompt")
MODEL = ("enc.transformer.prompt_embeddings", "enc.transformer.deep_prompt_embeddings")


def read(source: Path, options: Settings) -> Imported:
    """Return the prompts of the first block and, where the file has them, those of the others."""
    ledger = Ledger(source, state(read_flat(source), "model"))
    names = MODEL if MODEL[0] in ledger.values else FILE
    _, tokens, width = ledger.shape(names[0], 3)
    shallow, deep = ledger.take(names[0], (1, tokens, width)), None
    if names[1] in ledger.values:
        deep = ledger.take(names[1], (ledger.shape(names[1], 3)[0], tokens, width))
    head = ledger.head("head.last_layer")
    ledger.leave(r"enc\.transformer\.(embeddings|encoder)\..*")
    if shallow is not None:
        ledger.tensors["tokens.vpt.tokens"] = shallow if deep is None else torch.cat([shallow, deep])
    notes = [] if head else ["the file has no head: train one (LinearProbe), or use the features"]
    return Imported([VPT(tokens=tokens, deep=deep is not None), *head], ledger.close(), notes)


FORMAT = Foreign("vpt", r"^shallow_prompt$|enc\.transformer\.prompt_embeddings", read)
convert = FORMAT.convert
