"""Discovery: a folder under `methods/`, a file under `evals/`, or an entry point of any installed package.

Names and cards are read without importing torch; the plugin's code is imported when it is used. A broken plugin is
reported by name and skipped where nobody asked for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, unknown

if TYPE_CHECKING:
    from harness.method import Method


@dataclass(frozen=True)
class Plugin:
    """A method or an eval that was found; nothing of it is imported yet."""

    kind: str  # "method" or "eval"
    name: str
    module: str  # dotted name to import
    attribute: str | None  # of the module; None for the module itself
    folder: Path | None  # where card.toml lies

    def load(self) -> Any:
        """The plugin's class or module. Raises HarnessError, naming the plugin, when its import fails."""
        try:
            module = importlib.import_module(self.module)
        except Exception as error:
            raise HarnessError(
                f"the {self.kind} {self.name!r} cannot be imported: {type(error).__name__}: {error}",
                f"importing {self.module} to work",
                f'python -c "import {self.module}" shows where it fails; or leave {self.name!r} out',
            ) from error
        if self.attribute is None:
            return module
        if not hasattr(module, self.attribute):
            raise HarnessError(
                f"the {self.kind} {self.name!r} cannot be found: {self.module} has no attribute {self.attribute!r}",
                f"{self.attribute} in {module.__file__}, the class of the {self.kind}",
                f"end the file with {self.attribute} = THE_CLASS; or leave {self.name!r} out",
            )
        return getattr(module, self.attribute)


def method_plugins() -> dict[str, Plugin]:
    """Every method found, by name: folders of the `methods` package first, then entry points."""
    found = _own_methods()
    return found | _installed("method", "harness.methods", found)


def _own_methods() -> dict[str, Plugin]:
    import methods

    found = {}
    for root in map(Path, methods.__path__):
        for file in sorted(root.glob("*/method.py")):
            # The first of equal names is the one that Python imports.
            found.setdefault(file.parent.name, _own_method(file))
    return found


def _own_method(file: Path) -> Plugin:
    name = file.parent.name
    return Plugin("method", name, f"methods.{name}.method", "METHOD", file.parent)


def eval_plugins() -> dict[str, Plugin]:
    """Every eval found, by name: files of the `evals` package that do not start with `_`, then entry points."""
    found = _own_evals()
    return found | _installed("eval", "harness.evals", found)


def _own_evals() -> dict[str, Plugin]:
    import evals

    found = {}
    for root in map(Path, evals.__path__):
        for file in sorted(root.glob("[!_]*.py")):
            found.setdefault(file.stem, _own_eval(file))
    return found


def _own_eval(file: Path) -> Plugin:
    return Plugin("eval", file.stem, f"evals.{file.stem}", None, None)


def _own(kind: str, name: str) -> Plugin | None:
    """The one of that name among `_own_methods` or `_own_evals`, without a look at the others."""
    import evals
    import methods

    if kind == "method":
        files, made = [Path(root, name, "method.py") for root in methods.__path__], _own_method
    else:
        files, made = [Path(root, f"{name}.py") for root in evals.__path__ if not name.startswith("_")], _own_eval
    plain = Path(name).name == name  # no path
    return next((made(file) for file in files if plain and file.is_file()), None)


def _installed(kind: str, group: str, taken: dict[str, Plugin]) -> dict[str, Plugin]:
    return {
        point.name: Plugin(kind, point.name, point.module, point.attr or None, _folder(point))
        for point in entry_points(group=group)
        if point.name not in taken
    }


def _folder(point: EntryPoint) -> Path | None:
    """Where an entry point's module lies, found without importing the module itself."""
    package = point.module.rpartition(".")[0] or point.module
    try:
        spec = importlib.util.find_spec(package)
    except Exception:  # a broken parent package: the plugin is reported when it is loaded
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def find(kind: str, name: str) -> Plugin:
    """The plugin of that name, or a HarnessError with the nearest known one."""
    own = _own(kind, name)
    if own is not None:  # asked for often, and looking through all installed packages takes milliseconds
        return own
    found = method_plugins() if kind == "method" else eval_plugins()
    if name not in found:
        raise unknown(kind, name, found, "harness list shows what is installed")
    return found[name]


def load_method(name: str) -> type[Method]:
    """The method's class. Raises HarnessError when it cannot be imported or is no method."""
    from harness.method import Method

    plugin = find("method", name)
    found = plugin.load()
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise HarnessError(
            f"{plugin.module}.{plugin.attribute} of the method {name!r} is {found!r}",
            "a subclass of harness.method.Method",
            f"mend {plugin.module}; or leave {name!r} out",
        )
    return found


def load_eval(name: str) -> ModuleType:
    return find("eval", name).load()


@cache
def card(name: str) -> dict[str, Any]:
    """A method's `card.toml` as plain data. Raises HarnessError when it is missing or is no TOML."""
    folder = find("method", name).folder
    path = folder / "card.toml" if folder else None
    if path is None or not path.is_file():
        raise HarnessError(
            f"the method {name!r} has no card.toml",
            f"a card beside its method.py, as {path or 'card.toml'}",
            "methods/mae/card.toml shows what is in one",
        )
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HarnessError(f"the card of {name!r} is no TOML: {error}", "", f"mend {path}") from None
