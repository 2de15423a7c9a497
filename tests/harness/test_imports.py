"""Every module imports, and the command line does so without its heavy libraries."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.plugins import method_plugins

PACKAGES = ("harness", "backbones", "methods", "evals")
HEAVY = ("torch", "pandas", "sklearn", "diffusers", "timm", "rich", "pydantic", "numpy")


def modules() -> Iterator[str]:
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield name
        yield from (found.name for found in pkgutil.walk_packages(package.__path__, f"{name}."))


@pytest.mark.parametrize("name", sorted(modules()))
def test_it_imports(name: str) -> None:
    assert importlib.import_module(name).__name__ == name


def test_every_method_of_ours_is_a_package() -> None:
    """A folder without `__init__.py` is passed over by who walks packages, this file among them."""
    ours = {plugin.module for plugin in method_plugins().values() if plugin.module.startswith("methods.")}
    assert ours and ours <= set(modules())


@pytest.mark.parametrize("words", ["import harness.cli", "import harness.__main__", "import harness, methods, evals"])
def test_the_command_line_starts_without_heavy_libraries(words: str) -> None:
    code = f"import sys; {words}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


TABLES = """
import sys
from pathlib import Path
from harness.report.finish import render_study
from harness.store import Study
print(*(len(render_study(Study(Path(sys.argv[1])), form)) > 999 for form in ("md", "csv", "tex", "html")))
print("torch" in sys.modules)
"""


def test_tables_are_made_without_torch() -> None:
    """It takes seconds to load, more than the tables of most studies."""
    study = Path(__file__).parents[2] / "results" / "fashion-mnist-nano-10min"
    words = [sys.executable, "-c", TABLES, str(study)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True"] * 4 + ["False"]
