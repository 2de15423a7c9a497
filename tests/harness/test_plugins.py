"""Discovery: a folder or an entry point is enough, and what is broken is named without hurting the rest."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import evals
import methods
from harness import listing, plugins
from harness.errors import HarnessError
from harness.method import Method
from harness.plugins import card, eval_plugins, find, load_eval, load_method, method_plugins

METHOD = "from harness.method import Method\n\n\nclass Mine(Method):\n    pass\n\n\nMETHOD = Mine\n"
CARD = 'title = "Mine"\narxiv = "2401.00001"\nyear = 2024\n'


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`add("mine", code, card)`: a method's folder in a place of its own on `methods.__path__`."""
    root = tmp_path / "methods"
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(root)])
    card.cache_clear()

    def folder(name: str, code: str = METHOD, about: str | bytes | None = CARD) -> None:
        place = root / name
        place.mkdir(parents=True)
        (place / "method.py").write_text(code)
        if about is not None:
            (place / "card.toml").write_bytes(about.encode() if isinstance(about, str) else about)

    yield folder
    card.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Pretend that an installed package offers these entry points: name = "module:attribute"."""

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points.items() if group == "harness.methods"]

    monkeypatch.setattr(plugins, "entry_points", entry_points)


def test_a_folder_is_a_method(add: Callable) -> None:
    before = set(method_plugins())
    add("folder_alone")
    assert set(method_plugins()) == before | {"folder_alone"}
    found = load_method("folder_alone")
    assert issubclass(found, Method) and found.__name__ == "Mine"
    assert card("folder_alone")["title"] == "Mine"


def test_of_two_folders_of_one_name_code_and_card_are_the_first_ones(add: Callable, tmp_path: Path) -> None:
    add("twice", METHOD.replace("Mine", "First"), 'title = "first"')
    second = tmp_path / "more" / "twice"
    second.mkdir(parents=True)
    (second / "method.py").write_text(METHOD)
    (second / "card.toml").write_text('title = "second"')
    methods.__path__.append(str(second.parent))
    assert (load_method("twice").__name__, card("twice")["title"]) == ("First", "first")


def test_an_installed_package_brings_a_method_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "brought_along"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "method.py").write_text(METHOD)
    (package / "card.toml").write_text('title = "Brought"')
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, brought="brought_along.method:METHOD")
    card.cache_clear()
    assert load_method("brought").__name__ == "Mine"
    assert card("brought")["title"] == "Brought"


def test_a_folder_of_ours_wins_over_an_entry_point_of_its_name(add: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    add("ours")
    install(monkeypatch, ours="no.such.module:METHOD")
    assert load_method("ours").__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("raises", "raise RuntimeError('no licence')", "cannot be imported: RuntimeError: no licence"),
        ("needs", "import a_library_nobody_has", "No module named 'a_library_nobody_has'"),
        ("syntax", "def (:", "SyntaxError"),
        ("nameless", "x = 1", "has no attribute 'METHOD'"),
        ("no_method", "METHOD = 3", "is 3"),
    ],
)
def test_a_broken_method_is_named_when_it_is_used(add: Callable, name: str, code: str, words: str) -> None:
    add(name, code)
    assert name in method_plugins(), "finding it imports nothing of it"
    with pytest.raises(HarnessError, match=words) as caught:
        load_method(name)
    assert f"method {name!r}" in caught.value.found
    assert f"leave {name!r} out" in caught.value.next_step


def test_an_entry_point_that_leads_nowhere_is_named_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gone="no_such_package.method:METHOD")
    assert "gone" in method_plugins()
    with pytest.raises(HarnessError, match="the method 'gone' cannot be imported"):
        load_method("gone")


@pytest.mark.parametrize(
    ("about", "words"), [(None, "has no card.toml"), ("title = ", "is no TOML"), (b"\xff", "is no TOML")]
)
def test_a_missing_or_broken_card_is_named(add: Callable, about: str | bytes | None, words: str) -> None:
    add("cardless", about=about)
    with pytest.raises(HarnessError, match=f"'cardless' {words}|card of 'cardless' {words}"):
        card("cardless")


def test_a_listing_skips_what_is_broken_and_says_so(add: Callable, capsys: pytest.CaptureFixture) -> None:
    add("whole_one")
    add("no_card", about=None)
    listing.show("methods")
    shown = capsys.readouterr().out
    assert "whole_one" in shown and "2401.00001" in shown
    assert "skipped no_card" in shown and "card.toml" in shown


def test_listing_names_a_broken_eval_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken_eval.py").write_text("raise RuntimeError('not today')")
    (tmp_path / "whole_eval.py").write_text('TITLE = "A whole eval"\nPROTOCOL = 3\nNEEDS = "features"\n')
    (tmp_path / "_private.py").write_text("")
    monkeypatch.setattr(evals, "__path__", [str(tmp_path)])
    assert list(eval_plugins()) == ["broken_eval", "whole_eval"]
    assert load_eval("whole_eval").PROTOCOL == 3
    listing.show("evals")
    shown = capsys.readouterr().out
    assert "A whole eval" in shown and "skipped broken_eval" in shown and "not today" in shown


@pytest.mark.parametrize(("kind", "name", "near"), [("method", "near_mis", "near_miss"), ("eval", "knnn", "knn")])
def test_an_unknown_name_suggests_the_nearest(add: Callable, kind: str, name: str, near: str) -> None:
    add("near_miss")
    with pytest.raises(HarnessError, match=f"unknown {kind} '{name}'[\\s\\S]*did you mean '{near}'") as caught:
        find(kind, name)
    assert "harness list" in caught.value.next_step
