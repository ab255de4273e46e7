"""VPT's ``prompt_ep{epoch}.pth``: numpy arrays of prompts without a head; or the prompts inside a whole model."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger, state
from mmpeft.formats.tensor_file import refuse
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import VPT
from mmpeft.settings import Settings

FILE = ("shallow_prompt", "deep_prompt")
PROJECTION = "enc.transformer.prompt_proj"
MODEL = ("enc.transformer.prompt_embeddings", "enc.transformer.deep_prompt_embeddings")


class Options(Settings):
    """What the file does not hold."""

    projected: bool = False
    """whether the training's MODEL.PROMPT.PROJECT was set: then prompt_ep{epoch}.pth lacks the projection to be read"""


def read(source: Path, options: Options) -> Imported:
    """Return the prompts of the first block and, where the file has them, those of the others, and their projection."""
    ledger = Ledger(source, state(read_flat(source), "model"))
    whole = MODEL[0] in ledger.values
    names = MODEL if whole else FILE
    if options.projected and not whole:
        refuse(source, ["projected=true, and the file has no projection: give the checkpoint of the whole model"])
    _, tokens, width = ledger.shape(names[0], 3)
    shallow, deep = ledger.take(names[0], (1, tokens, width)), None
    if names[1] in ledger.values:
        deep = ledger.take(names[1], (ledger.shape(names[1], 3)[0], tokens, width))
    prompts = [prompt for prompt in (shallow, deep) if prompt is not None]
    projected = f"{PROJECTION}.weight" in ledger.values
    if projected:
        out, _ = ledger.shape(re.escape(f"{PROJECTION}.weight"), 2)
        ledger.enter("tokens.vpt.projection.weight", f"{PROJECTION}.weight", (out, width))
        ledger.enter("tokens.vpt.projection.bias", f"{PROJECTION}.bias", (out,))
    head = ledger.head("head.last_layer")
    ledger.leave(r"enc\.transformer\.(embeddings|encoder)\..*")
    if shallow is not None:
        ledger.tensors["tokens.vpt.tokens"] = torch.cat(prompts)
    notes = [] if head else ["the file has no head: train one (LinearProbe), or use the features"]
    method = VPT(tokens=tokens, deep=deep is not None, project=width if projected else None)
    return Imported([method, *head], ledger.close(), notes, () if whole else None)


FORMAT = Foreign("vpt", r"^shallow_prompt$|enc\.transformer\.prompt_embeddings", read, Options)
convert = FORMAT.convert
