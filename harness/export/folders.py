"""A folder that is whole or not there: made under a temporary name and renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.files import explain


@contextmanager
def made(place: Path) -> Iterator[Path]:
    """A folder to fill, which stands at `place` once the block ends well, and is gone when it does not."""
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, place)
    except OSError as error:
        raise explain(error, place) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
