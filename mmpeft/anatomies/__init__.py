"""The readers: one file per model library. The generic one answers last, for models that no other knows."""

from mmpeft.anatomies import attention  # noqa: F401  isort: skip
from mmpeft.anatomies import heads  # noqa: F401  isort: skip
from mmpeft.anatomies import timm  # noqa: F401  isort: skip
from mmpeft.anatomies import open_clip  # noqa: F401  isort: skip
from mmpeft.anatomies import transformers  # noqa: F401  isort: skip
from mmpeft.anatomies import transformers_text  # noqa: F401  isort: skip
from mmpeft.anatomies import diffusers  # noqa: F401  isort: skip
from mmpeft.anatomies import generic  # noqa: F401  isort: skip
