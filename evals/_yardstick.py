"""What generation is measured with: the network whose features are compared, and the real images compared with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from evals import _frechet

if TYPE_CHECKING:
    from evals._frechet import Extractor, Statistics
    from harness.evaluation import Context

ENVIRONMENT = "HARNESS_INCEPTION"  # path of the Inception weights, where the config names none


def extractor(context: Context, inception: str | None) -> Extractor:
    """Inception with weights from the path `inception` (or ENVIRONMENT), else the data set's stand-in classifier."""
    path = inception or os.environ.get(ENVIRONMENT)
    if path:
        return _frechet.inception(Path(path), context.device)
    return _frechet.stand_in(context.data, context.cache, context.device)


def reference(context: Context, extractor: Extractor, name: str) -> Statistics:
    """Statistics of a real part: the whole of train, once per data set and extractor; or the test part."""
    if name == "test":
        return _frechet.reference(extractor, context.open_test().chunks(500), None)
    data = context.data
    file = f"reference-{data.spec.name}-{data.revision[:16]}-{extractor.checksum[:16]}.safetensors"
    return _frechet.reference(extractor, context.part("train").chunks(500), context.cache / file)
