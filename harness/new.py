"""`harness new`: a method to start from, copied from harness/starter under a name of its own."""

from __future__ import annotations

import keyword
import shlex
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.files import explain
from harness.plugins import eval_plugins, method_plugins

STARTER = Path(__file__).resolve().parent / "starter"
OF_METHOD = ("__init__.py", "method.py", "card.toml", "README.md")
TEST = "test_method.py"
HERE = "harness.starter"  # the module that the starter's test imports from


def write(name: str, folder: Path | None = None, package: bool = False) -> list[str]:
    """Write the method `name` below `folder`, as a bare folder or a package; lines that say what to type next.

    Raises HarnessError for a name that is taken or no name, and where the folder is there already.
    """
    _check(name)
    root = folder or (Path() if package else _checkout())
    place = root / name
    if place.exists():
        raise HarnessError(f"{place} is there already", "a folder to be made", "another name, or --folder ELSEWHERE")
    texts = _package(name) if package else _folder(name)
    try:
        for path, text in texts.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text)
    except OSError as error:
        raise explain(error, place) from error
    return [f"written   {place}", *(f"          {path}" for path in texts), "next:", *_next(name, place, package)]


def _check(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise HarnessError(
            f"{name!r} is no name for a method", "a Python identifier in small letters", "for example: simclr"
        )
    for kind, taken in (("a method", method_plugins()), ("an eval", eval_plugins())):
        if name in taken:  # both have sections of settings of their name
            raise HarnessError(f"{kind} named {name!r} is installed", "a name of its own", "harness list shows them")
    if name in sys.stdlib_module_names or name in ("harness", "methods", "backbones", "evals", "torch"):
        raise HarnessError(f"{name!r} is the name of a module", "a name of its own", f"for example: {name}_method")


def _checkout() -> Path:
    """The `methods` folder of the checkout that this code belongs to."""
    root = STARTER.parent.parent
    if not (root / "pyproject.toml").is_file():
        raise HarnessError(
            f"the harness is installed in {root}, which is no checkout",
            "a folder for the method",
            "--package makes an installable package here; or --folder PATH",
        )
    return root / "methods"


def _folder(name: str) -> dict[str, str]:
    """The files of a bare folder, by their path."""
    return _method(name) | {TEST: _test(name, f"methods.{name}")}


def _package(name: str) -> dict[str, str]:
    about = _renamed((STARTER / "pyproject.toml").read_text(), name)
    # Below src/: Python would take the outer folder for the package where it runs beside it.
    files = {f"src/{name}/{path}": text for path, text in _method(name).items()}
    return {"pyproject.toml": about, **files, f"tests/{TEST}": _test(name, name)}


def _method(name: str) -> dict[str, str]:
    return {path: _renamed((STARTER / path).read_text(), name) for path in OF_METHOD}


def _test(name: str, module: str) -> str:
    """The starter's test, of the method in the package `module`."""
    return _renamed((STARTER / TEST).read_text().replace(HERE, module), name)


def _renamed(text: str, name: str) -> str:
    return text.replace("Starter", name.title().replace("_", "")).replace("starter", name)


def _next(name: str, place: Path, package: bool) -> list[str]:
    import methods

    run = [f"  python -m harness run --methods {name},mae --budget 1min"]
    if package:
        return [f"  python -m pip install --editable {_quoted(place)}", f"  python -m harness check {name}", *run]
    if str(place.parent.resolve()) in map(str, methods.__path__):
        return [f"  python -m harness check {name}", *run]
    moved = "  and for `run`, move the folder into methods/ of a checkout, or begin with --package"
    return [f"  python -m harness check {_quoted(place)}", moved]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
