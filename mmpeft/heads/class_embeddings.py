"""The class embeddings of a tuned zero-shot classifier: all of it that serving needs."""

from __future__ import annotations

from mmpeft.anatomies.sites import LogitsSite
from mmpeft.formats.serving.class_embeddings import ClassEmbeddings
from mmpeft.heads.zero_shot import ZeroShotClassifier
from mmpeft.injection.tree import Tree


def embeddings_of(classifier: ZeroShotClassifier) -> tuple[ClassEmbeddings, list[str]]:
    """Return a classifier's class embeddings with its active adapters, and what they leave out.

    Logits that are no cosines (Tip-Adapter's cache), and embeddings that are others for each image (CoCoOp),
    are a ValueError.
    """
    tree = classifier._modules.get("mmpeft")
    touched = tree.touched if isinstance(tree, Tree) else frozenset()
    bindings = [b for name in tree.active for b in tree.adapters[name].bindings] if isinstance(tree, Tree) else []
    if any(isinstance(binding.site, LogitsSite) for binding in bindings):
        raise ValueError("class_embeddings: an active adapter adds to the logits, which no class embeddings can say")
    weight = classifier.class_embeddings().detach().float()
    said = ["the adapter changes the image features too: serve those of the adapted model"]
    embeddings = ClassEmbeddings(weight, classifier.classes, classifier.joint.scale().item())
    return embeddings, said if "vision" in touched else []
