"""What is committed under results/ is what the committed records give: every table, curve and page, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.__main__ import main
from harness.report.finish import write_curve
from harness.report.tables import write_all
from harness.store import Study

STUDIES = sorted(path.parent for path in (Path(__file__).parents[1] / "results").glob("*/study.json"))
MADE = ("tables", "report", "compare")  # folders of a study that are made from its records


@pytest.fixture(params=STUDIES, ids=lambda folder: folder.name)
def committed(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def again(committed: Path, tmp_path: Path) -> Path:
    """The study's records alone, under its own name."""
    place = tmp_path / committed.name
    place.mkdir()
    for entry in committed.iterdir():
        if entry.name not in MADE:
            (place / entry.name).symlink_to(entry)
    return place


def test_tables_and_curves(committed: Path, again: Path) -> None:
    """To mend it: make them again with the command that results/README.md names, and look at what changed."""
    write_all(Study(again))
    write_curve(Study(again))
    assert_equal(committed / "tables", again / "tables")


def test_pages(committed: Path, again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To mend it: python -m harness report results/NAME."""
    if not (committed / "report").is_dir():
        pytest.skip("no page was made of this study")
    monkeypatch.setattr("sys.argv", ["harness", "report", str(again)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    assert_equal(committed / "report", again / "report")


def test_comparisons(committed: Path, again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To mend it: python -m harness compare METHOD METHOD --metric METRIC --study results/NAME."""
    folders = sorted((committed / "compare").glob("*"))
    if not folders:
        pytest.skip("no comparison was made of this study")
    for folder in folders:
        *methods, metric = folder.name.split("-")
        monkeypatch.setattr("sys.argv", ["harness", "compare", *methods, "--metric", metric, "--study", str(again)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code in (0, None)
        assert_equal(folder, again / "compare" / folder.name)


def test_no_study_is_committed_without_its_tables() -> None:
    assert STUDIES
    assert [folder.name for folder in STUDIES if not (folder / "tables").is_dir()] == []


def assert_equal(committed: Path, made: Path) -> None:
    """The same files with the same bytes; of a picture the same pixels, whatever wrote the file."""
    assert files(committed) == files(made)
    assert [name for name in files(made) if content(committed / name) != content(made / name)] == []


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def content(path: Path) -> bytes:
    if path.suffix != ".png":
        return path.read_bytes()
    from PIL import Image

    with Image.open(path) as picture:
        return repr(picture.size).encode() + picture.convert("RGB").tobytes()
