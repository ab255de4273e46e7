from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def build(make_case: Any) -> Any:
    def build(model: str = "open_clip", templates: Any = None, tokenizer: Any = None, **options: Any) -> Any:
        from classifiers import CLASSES, TEMPLATES, marked

        from mmpeft.heads.zero_shot import ZeroShotClassifier

        backbone = make_case("lora", model).build()
        for key, value in options.items():
            setattr(backbone.text, key, value)
        return ZeroShotClassifier(backbone, CLASSES, templates or TEMPLATES, tokenizer or marked).eval()

    return build
