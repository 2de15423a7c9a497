"""A plan that was made before imports no method and says the same; whatever might make it say otherwise is seen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import methods
from harness import new, plugins, resolve, sources
from harness.answers import VERSIONS, Answers
from harness.config import plain
from harness.errors import HarnessError
from harness.plan import disk, planned
from harness.plugins import load_method, method_plugins
from harness.study import build

ROOT = Path(__file__).parents[2]
TYPED = """
import atexit, sys
atexit.register(lambda: print("heavy:", *(n for n in ("torch", "timm") if n in sys.modules), file=sys.stderr))
import methods
methods.__path__ += [{methods!r}]
from harness.__main__ import main
main()
"""
WAYS = (("down", "DownEncoder"), ("up", "UpDecoder"))  # of an autoencoder
MAE = ("--methods", "mae", "--budget", "1min")


class Plans:
    """`harness plan` in processes of their own, with a cache of their own."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.methods, self.path = folder / "cache", folder / "methods", folder / "path"
        for made in (self.methods, self.path):
            made.mkdir()

    def typed(self, command: str, *words: str) -> tuple[subprocess.CompletedProcess[str], bool]:
        """The command, and whether it imported torch or timm."""
        asked = [command, *words, "--cluster", "inline", "--out", str(self.cache / "runs")]
        done = subprocess.run(
            [sys.executable, "-c", TYPED.format(methods=str(self.methods)), *asked],
            env=os.environ | {"HARNESS_CACHE": str(self.cache), "PYTHONPATH": f"{ROOT}{os.pathsep}{self.path}"},
            cwd=self.path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return done, bool(done.stderr.split("heavy:")[-1].strip())

    def __call__(self, *words: str) -> tuple[str, bool]:
        """What a plan printed, and whether it imported torch or timm."""
        done, heavy = self.typed("plan", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.sub(r"[\d.]+ \w+ free", "", done.stdout), heavy  # of the disk, which others take meanwhile

    def kept(self) -> list[Path]:
        return sorted(self.cache.glob("answers/*/*.json"))


@pytest.fixture(scope="module")
def plans(tmp_path_factory) -> Plans:
    return Plans(tmp_path_factory.mktemp("plans"))


@pytest.fixture(scope="module")
def first(plans) -> str:
    said, heavy = plans(*MAE)
    assert heavy and "mae digits nano 1min seed 0" in said
    return said


def test_a_second_plan_imports_no_torch_and_says_the_same(plans, first):
    assert plans(*MAE) == (first, False)
    other, heavy = plans("--methods", "mae", "--budget", "90s,300step", "--seeds", "3")
    assert not heavy and "mae digits nano 300step seed 2" in other


@pytest.mark.parametrize("words", [("mae.base_lr=1e-3",), ("--size", "ti")])
def test_what_was_not_asked_before_is_worked_out(plans, first, words):
    said, heavy = plans(*MAE, *words)
    assert heavy
    assert plans(*MAE, *words) == (said, False)
    assert plans(*MAE) == (first, False)


def test_a_damaged_answer_is_made_anew(plans, first):
    contents = [b"", b"{", b"[]", b'{"asked": 1, "answer": {}, "digest": ""}']
    for path, content in zip(plans.kept(), contents * len(plans.kept()), strict=False):
        path.write_bytes(content)
    assert plans(*MAE) == (first, True)
    assert plans(*MAE) == (first, False)
    for path in plans.kept():
        path.write_bytes(path.read_bytes().replace(b'": 1', b'": 2'))  # valid JSON, other numbers
    assert plans(*MAE) == (first, True)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    plans = Plans(tmp_path)
    plans.cache.mkdir()
    (plans.cache / "answers").write_text("in the way")
    said, heavy = plans(*MAE)
    assert heavy and "mae digits nano 1min seed 0" in said and not plans.kept()


def a_folder(plans: Plans) -> Path:
    new.write("sifted", plans.methods)
    return plans.methods / "sifted"


def a_package(plans: Plans) -> Path:
    """As pip installs it."""
    new.write("sifted", plans.path, package=True)
    (plans.path / "sifted" / "src" / "sifted").rename(plans.path / "whole")
    (plans.path / "sifted").rename(plans.path / "project")
    (plans.path / "whole").rename(plans.path / "sifted")
    about = plans.path / "sifted-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sifted\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[harness.methods]\nsifted = sifted.method:METHOD\n")
    return plans.path / "sifted"


@pytest.mark.parametrize("made", [a_folder, a_package])
def test_a_changed_method_is_worked_out_anew(made, tmp_path):
    plans = Plans(tmp_path)
    code = made(plans) / "method.py"
    words = ("--methods", "sifted", "--budget", "1min")
    said, heavy = plans(*words)
    assert heavy and plans(*words) == (said, False)
    text = code.read_text()
    assert "nn.Linear(width, numbers)" in text
    code.write_text(text.replace("nn.Linear(width, numbers)", "nn.Linear(width, numbers, bias=False)"))
    changed, heavy = plans(*words)
    assert heavy and changed != said
    code.write_text(text)
    assert plans(*words) == (said, False)  # the code is that of the first answer


def test_a_run_leaves_what_a_plan_asks(tmp_path):
    plans = Plans(tmp_path)
    tiny = ("--budget", "2step", "--evals", "knn", "train.batch_size=16", "train.snapshots=[]")
    done, _ = plans.typed("run", "--methods", "difformer", *tiny)
    assert done.returncode == 0, done.stdout + done.stderr
    said, heavy = plans("--methods", "difformer", *tiny)
    assert not heavy and "jobs are done and not repeated" in said
    said, heavy = plans("--methods", "difformer", *tiny, "--name", "other")
    assert not heavy and "shared: ddae digits nano 2step seed 0" in said


# -- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture
def keeping(monkeypatch, tmp_path) -> Path:
    """Answers are kept although methods are imported already; the folder."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "imported", lambda: False)
    return tmp_path / "answers"


def test_a_plan_knows_of_every_method_what_its_code_says(keeping, monkeypatch):
    """Above all the keys, by which runs are found."""
    names = sorted(name for name, plugin in method_plugins().items() if plugin.module.startswith("methods."))
    study = build({"methods": names, "budget": "1s,9step", "size": "nano,ti", "seeds": 2, "evals": "knn"})
    jobs = resolve.jobs(study)
    planned.jobs(study, None, 0)
    monkeypatch.setattr(resolve, "load_method", lambda name: pytest.fail(f"{name} is loaded"))
    for job, known in zip(jobs, planned.jobs(study, None, 0), strict=True):
        for one, other in [(job, known), *([(job.source, known.source)] if job.source else [])]:
            assert (one.cell, one.key, one.label, one.budget) == (other.cell, other.key, other.label, other.budget)
            assert (one.train, plain(one.config), one.verbs) == (other.train, other.config, other.verbs)
            assert (one.departs, one.source is None) == (other.departs, other.source is None)
    monkeypatch.undo()
    assert disk.known(known.source or known, Answers()) == disk.size(job.source or job)


def test_a_network_of_borrowed_weights_is_built_each_time(keeping, tmp_path):
    """Its files may be gone, or others."""
    from diffusers import AutoencoderKL

    folder, seen = tmp_path / "weights", []
    study = build({"methods": "lmd", "budget": "1s", "lmd": {"vae": str(folder)}})
    for levels in (2, 3):
        blocks = {f"{way}_block_types": (f"{word}Block2D",) * levels for way, word in WAYS}
        widths = {"block_out_channels": (8,) * levels, "norm_num_groups": 4}
        AutoencoderKL(**blocks, **widths, sample_size=8, mid_block_add_attention=False).save_pretrained(folder)
        seen += [disk.known(*planned.jobs(study, None, 0), Answers())]
    assert seen[0] != seen[1] and all(size.borrows for size in seen)
    shutil.rmtree(folder)
    with pytest.raises(HarnessError, match="is not on this machine"):
        disk.known(*planned.jobs(study, None, 0), Answers())


def test_imported_methods_are_asked_themselves(monkeypatch, tmp_path):
    """Their code may be older than their files."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    load_method("mae")
    answers = Answers()
    assert answers.ask({"a": 1}, lambda: 2) == answers.ask({"a": 1}, lambda: 3) == 2
    assert Answers().ask({"a": 1}, lambda: 3) == 3
    assert not list(tmp_path.iterdir())


def test_answers_hold_until_their_question_or_their_code_is_another(keeping, monkeypatch):
    assert Answers().ask({"a": 1}, lambda: [2]) == [2]
    assert Answers().ask({"a": 1}, lambda: 3) == [2]
    assert Answers().ask({"a": 1}, lambda: 3, holds=lambda answer: answer == 3) == 3
    assert [Answers().ask({"a": other}, lambda: 4) for other in (1.0, "1", True)] == [4, 4, 4]
    for version in range(VERSIONS + 2):
        monkeypatch.setattr(sources, "digest", lambda version=version: f"code{version}")
        assert Answers().ask({"a": 1}, lambda version=version: version) == version
    assert len(list(keeping.iterdir())) == VERSIONS


def test_what_is_refused_is_refused_each_time(keeping):
    study = build({"methods": "mae", "budget": "1s", "mae": {"mask_ratio": "most"}})
    for _ in range(2):
        with pytest.raises(HarnessError, match="mask_ratio='most' does not fit"):
            planned.jobs(study, None, 0)


def test_an_answer_of_code_that_is_edited_meanwhile_is_not_kept(keeping, monkeypatch):
    answers = Answers()
    monkeypatch.setattr(sources, "digest", lambda: "edited")
    assert answers.ask({"a": 1}, lambda: 2) == 2
    assert not keeping.exists()


def test_the_digest_of_the_code_sees_methods_plugins_and_versions(monkeypatch, tmp_path):
    part, package, site = (tmp_path / name for name in ("part", "plugged_in", "site"))
    for folder in (part / "mine", package, site):
        folder.mkdir(parents=True)
    seen = [sources.digest()]

    def changed() -> bool:
        seen.append(sources.digest())
        return seen[-1] not in seen[:-1]

    assert not changed()
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(part)])
    assert changed()
    (part / "mine" / "method.py").write_text("METHOD = 1")
    assert changed()
    (part / "mine" / "method.py").write_text("METHOD = 2")
    assert changed()
    (part / "mine" / "__pycache__").mkdir()
    (part / "mine" / "__pycache__" / "method.pyc").write_text("")
    assert not changed()
    monkeypatch.syspath_prepend(tmp_path)
    (package / "__init__.py").touch()
    point = EntryPoint("plugged", "plugged_in.method:METHOD", "harness.methods")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == "harness.methods" else [])
    assert changed()
    (package / "deep").mkdir()
    (package / "deep" / "numbers.json").write_text("[1]")
    assert changed()
    monkeypatch.syspath_prepend(site)
    (site / "timm-99.dist-info").mkdir()
    assert changed()
