"""Weights trained elsewhere: what is read, what is refused, and how their rows are told from runs."""

from __future__ import annotations

import argparse
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import HarnessError
from harness.evaluation import can
from harness.fitted import Fitted, FittedDrawing, FittedLabelled
from harness.method import Batch, DataSpec
from harness.plugins import load_method
from harness.records import EvalRecord
from harness.released import files
from harness.report.tables import of_study
from harness.rng import Rng
from harness.store import Study
from tests.harness.made_study import cells, texts
from tests.harness.released import QUICK, Malicious
from tests.toys import SPEC, build


def official(width: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """An encoder and decoder under names that are not ours."""
    rng = Rng(seed)
    shapes = {"enc.weight": (width, 16), "enc.bias": (width,), "dec.weight": (16, width), "dec.bias": (16,)}
    return {name: rng.normal(name, shape) for name, shape in (shapes | {"mean": (width,)}).items()}


# -- files ----------------------------------------------------------------------------------------------------------


def test_the_average_is_taken_where_there_is_one_and_the_raw_weights_when_asked(saved):
    raw, ema = official(seed=1), official(seed=2)
    weights = files.read(saved({"model": raw, "ema": {f"module.{k}": v for k, v in ema.items()}, "epoch": 3}))
    taken = files.choose(weights)
    assert (taken.entry, taken.kind) == ("ema", "ema") and torch.equal(taken.state["mean"], ema["mean"])
    taken = files.choose(weights, "raw")
    assert (taken.entry, taken.kind) == ("model", "raw") and torch.equal(taken.state["mean"], raw["mean"])
    plain = files.choose(files.read(saved(raw)))
    assert (plain.entry, plain.kind) == ("", "raw") and plain.state.keys() == raw.keys()


def test_what_a_file_does_not_hold_is_said(saved):
    with pytest.raises(HarnessError, match=r"no ema weights in toy.pth, which holds: model"):
        files.choose(files.read(saved({"model": official()})), "ema")
    with pytest.raises(HarnessError, match=r"no network in toy.pth, which holds: epoch"):
        files.choose(files.read(saved({"epoch": 3})))
    with pytest.raises(HarnessError, match="holds one Tensor"):
        files.read(saved(torch.zeros(3)))


def test_every_kind_of_file_gives_the_same_tensors(tmp_path, saved):
    from safetensors.torch import save_file

    state = official()
    save_file(state, tmp_path / "toy.safetensors")
    np.savez(tmp_path / "toy.npz", **{name: value.numpy() for name, value in state.items()})
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for path in (saved(state), tmp_path / "toy.safetensors", tmp_path / "toy.npz", tmp_path / "old.pt"):
        found = files.choose(files.read(path)).state
        assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state), path


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, zipped):
    marker = tmp_path / "ran"
    content = {"model": official(), "args": Malicious(marker)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(HarnessError, match=r"holds more than tensors .*opening it would run code"):
        files.read(tmp_path / "evil.pth")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists(), "the test's own bait does nothing"


def test_pickled_objects_in_arrays_are_refused(tmp_path):
    marker = tmp_path / "ran"
    np.savez(tmp_path / "evil.npz", a=np.zeros(2), b=np.array([Malicious(marker)], dtype=object))
    with pytest.raises(HarnessError, match="holds Python objects beside its arrays"):
        files.read(tmp_path / "evil.npz")
    assert not marker.exists()


def test_official_training_files_are_refused_with_lines_that_convert_them(tmp_path, saved):
    """MAE's and DiT's files hold the arguments of the training script."""
    state = official()
    args, trusted = argparse.Namespace(lr=1), torch.serialization.get_safe_globals()
    path = saved({"model": state, "ema": state, "optimizer": {"lr": 1.0}, "epoch": 7, "args": args})
    with pytest.raises(HarnessError, match=r"holds more than tensors \(argparse.Namespace\)") as refused:
        files.read(path)
    assert torch.serialization.get_safe_globals() == trusted, "nothing was made safe behind the user's back"
    lines = re.findall(r"^    (.*)$", refused.value.next_step, re.M)
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
    converted = tmp_path / "toy-tensors.pth"
    assert str(converted) in refused.value.next_step
    found = files.choose(files.read(converted))
    assert found.kind == "ema" and all(torch.equal(found.state[k], state[k]) for k in state)


@pytest.mark.parametrize("name", ["cut.pth", "cut.npz", "cut.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name, saved):
    whole = saved(official()).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HarnessError, match=rf"{name} cannot be read as a checkpoint"):
        files.read(tmp_path / name)
    with pytest.raises(HarnessError, match="is not there"):
        files.read(tmp_path / "nowhere.pth")


def test_weights_in_memory_have_a_digest_of_their_own():
    one = files.sha256_of_tensors(official(seed=1))
    assert one == files.sha256_of_tensors(dict(reversed(official(seed=1).items())))
    assert one != files.sha256_of_tensors(official(seed=2))


# -- sizes ----------------------------------------------------------------------------------------------------------


def test_images_are_brought_to_the_network_and_samples_to_the_data():
    inner = build().eval()
    data = DataSpec("large", channels=1, size=12, classes=2)
    images = Rng(0).uniform("images", (5, 1, 12, 12)) * 2 - 1
    fitted = FittedDrawing(inner, data)
    found = fitted.features(images, fitted.taps(), Rng(0))[0]
    small = torch.nn.functional.interpolate(images, 4, mode="bicubic", antialias=True).clamp(-1, 1)
    assert torch.equal(found, inner.features(small, inner.taps(), Rng(0))[0])
    assert fitted.sample(3, Rng(0)).shape == (3, 1, 12, 12)
    assert any("resized to the network's 4 px" in said for said in fitted.remarks())


def test_slices_of_a_large_batch_are_whole_and_in_order(monkeypatch):
    monkeypatch.setattr("harness.fitted.PIXELS", 2 * SPEC.size**2)
    inner = build().eval()
    fitted = FittedDrawing(inner, SPEC)
    images = Rng(0).uniform("images", (5, 1, 4, 4)) * 2 - 1
    assert torch.allclose(
        fitted.features(images, fitted.taps(), Rng(0))[0], inner.features(images, inner.taps(), Rng(0))[0]
    )
    samples = fitted.sample(5, Rng(0))
    assert samples.shape == (5, 1, 4, 4) and len(samples.unique(dim=0)) == 5, "a slice repeated another's samples"


def test_a_labelled_training_of_released_weights_is_on_the_datas_own_labels():
    kind = load_method("umd")
    inner = kind.create(kind.recipe("nano", DataSpec("released", 1, 8, 0)), DataSpec("released", 1, 8, 0))
    data = DataSpec("larger", channels=1, size=12, classes=3)
    method = FittedLabelled(inner, data).labelled()
    assert method.sees_labels and can(method, "sample")
    batch = Batch(Rng(0).uniform("images", (4, 1, 12, 12)) * 2 - 1, labels=torch.tensor([0, 1, 2, 2]))
    method.train().pretrain(batch, 0.5, Rng(0)).total.backward()
    learned = [p for group in method.param_groups() for p in group["params"] if p.grad is not None]
    assert any(p.grad.any() for p in learned) and method.optim(4) == method.inner.optim(4)
    assert method.eval().sample(2, Rng(0), torch.tensor([0, 2]), 2, guidance=1.5).shape == (2, 1, 12, 12)


def test_heads_read_the_networks_own_maps_at_its_size():
    kind, spec = load_method("dit"), DataSpec("released", 1, 8, 0)
    inner = kind.create(kind.recipe("nano", spec), spec).eval()
    fitted = Fitted(inner, DataSpec("larger", channels=1, size=12, classes=3))
    assert fitted.maps() == inner.maps() and fitted.fusion() == inner.fusion()
    images = Rng(0).uniform("images", (2, 1, 12, 12)) * 2 - 1
    (maps,) = fitted.features(images, fitted.maps()[:1], Rng(0), dense=True)
    assert maps.shape == (2, 96, 4, 4) and fitted.feedback_head(3, None) is None


def test_a_head_that_runs_the_network_is_given_images_of_its_size(monkeypatch):
    inner = build().eval()
    head = torch.nn.Flatten()
    head.forward = lambda images, rng: images.flatten(1)
    monkeypatch.setattr(type(inner), "feedback_head", lambda *_: head)
    fitted = Fitted(inner, DataSpec("large", channels=1, size=12, classes=2))
    made = fitted.feedback_head(2, None)
    assert made(torch.zeros(3, 1, 12, 12), Rng(0)).shape == (3, SPEC.size**2)
    assert list(made.parameters()) == [], "the frozen network is none of the head's parameters"


def test_colour_images_do_not_fit_a_grey_network():
    with pytest.raises(HarnessError, match=r"1 channel\(s\), and colours of 3"):
        Fitted(build(), DataSpec("colours", channels=3, size=4, classes=2))


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toyform")
def test_released_weights_go_through_the_evals_and_are_marked(tmp_path, harness, saved):
    path = saved({"ema": official()})
    words = ["eval", "--checkpoint", path, "--format", "toyform", *QUICK, "--out", tmp_path / "runs"]
    status, out, _ = harness(*words)
    assert status == 0 and "released weights" in out
    study = Study(tmp_path / "runs/digits-nano-released-weights")
    (run,) = study.runs()
    assert run.released is not None
    assert (run.released.file, run.released.entry, run.released.weights) == ("toy.pth", "ema", "ema")
    assert run.released.sha256 == files.sha256_of(path) and run.released.image_size == 4
    assert run.cost is not None and run.cost.flop_train_img is None
    assert run.cost.flop_features_img == 2 * 16 * 6 and run.cost.parameters == 16 * 6 + 6 + 6 * 16 + 16
    assert (
        run.borrowed[0].cost
        == "not declared; if these are the published weights, as their makers state it, two epochs of toys"
        and run.spend.wall_s == 0
        and run.ledger == {}
    )
    tables = of_study(study)
    label = "toyform, released weights toy.pth"
    for table in tables[:2]:
        (section,) = table.sections
        assert section.heading == "digits · nano · released weights"
        (row,) = [row for row in section.rows if row.cells[0].text == label]
        said = " ".join(row.cells[0].notes)
        assert "trained elsewhere" in said and "two epochs of toys" in said and "resized to the network's 4 px" in said
    assert cells(tables[0], label)["test n"] == "359" and cells(tables[1], label)["samples n"] == "100"
    clock = texts(tables[2].sections[0])[label]
    titles = [column.title for column in tables[2].sections[0].columns][1:]
    clock = dict(zip(titles, clock, strict=True))
    assert clock["budget"] == "released weights" and clock["spent of budget, %"] == clock["images seen"] == "—"


@pytest.mark.usefixtures("toyform")
def test_repeating_redoes_nothing_and_other_weights_are_other_rows(tmp_path, harness, saved):
    def type_(path: Path, *more: str) -> None:
        words = ["--format", "toyform", "--evals", "knn", "--name", "s", "--out", tmp_path / "runs"]
        status, _, err = harness("eval", "--checkpoint", path, *words, *more)
        assert status == 0, err

    study = Study(tmp_path / "runs/s")
    type_(saved({"model": official(), "ema": official(seed=2)}))
    before = {p: p.stat().st_mtime_ns for p in study.path.glob("r*/**/knn.json")}
    type_(tmp_path / "toy.pth")
    assert {p: p.stat().st_mtime_ns for p in study.path.glob("r*/**/knn.json")} == before
    type_(tmp_path / "toy.pth", "--weights", "raw")
    type_(saved(official(seed=3)))
    assert len(list(study.runs())) == len(study.asked().keys) == 3
    table = next(table for table in of_study(study) if table.title == "Representation")
    labels = [row.cells[0].text for row in table.sections[0].rows]
    assert len(set(labels)) == len(labels) == 4, "two rows of one name"


@pytest.mark.usefixtures("toyform")
def test_released_weights_stand_beside_runs_and_apart_from_them(tmp_path, harness, saved):
    words = ["--evals", "knn", "--name", "both", "--out", tmp_path]
    run = ["--methods", "mae", "--budget", "3step", "train.batch_size=16", "train.snapshots=[0.5]"]
    released = ["--checkpoint", saved(official()), "--format", "toyform"]
    assert harness("run", *run, *words)[0] == 0
    assert harness("eval", *released, *words)[0] == 0
    assert harness("run", *run, *words)[0] == 0
    study = Study(tmp_path / "both")
    table = of_study(study)[0]
    assert [s.heading for s in table.sections] == ["digits · nano · released weights", "digits · nano · 3step"]
    status, out, _ = harness("eval", tmp_path / "both", "--evals", "knn")
    assert status == 0 and "failed" not in out
    status, out, _ = harness("status", tmp_path / "both")
    assert status == 0 and "released weights" in out


@pytest.mark.usefixtures("toyform")
def test_an_encoder_alone_is_evaluated_and_said_not_to_draw(tmp_path, harness, saved):
    path = saved({k: v for k, v in official().items() if not k.startswith("dec")})
    words = ["--format", "toyform", *QUICK, "--name", "s", "--out", tmp_path]
    status, out, _ = harness("eval", "--checkpoint", path, *words)
    assert status == 0 and "these weights cannot do: generation" in out
    (run,) = Study(tmp_path / "s").runs()
    assert run.released is not None and run.released.missing == ["last.bias", "last.weight"]
    assert any("cannot draw: 2 tensors that only drawing needs" in note for note in run.notes)
    evals = [r for r in Study(tmp_path / "s").evals() if isinstance(r, EvalRecord) and r.key]
    assert [r.eval for r in evals] == ["knn"]


@pytest.mark.usefixtures("toyform")
def test_missing_and_unexpected_tensors_are_listed(tmp_path, harness, saved):
    words = ["--format", "toyform", "--evals", "knn", "--out", tmp_path / "runs"]
    state = official()
    path = saved({k: v for k, v in state.items() if k not in ("enc.bias", "mean")})
    status, _, err = harness("eval", "--checkpoint", path, *words)
    assert status == 2 and "lacks 2 tensor(s) of the method: first.bias, mean" in err
    path = saved({"model": state | {"head.weight": torch.zeros(2), "head.bias": torch.zeros(2), "version": 3}})
    status, _, err = harness("eval", "--checkpoint", path, *words)
    assert status == 2 and "3 tensor(s) that the method has no place for: head.bias, head.weight, version" in err
    assert "--allow-unexpected" in err and not (tmp_path / "runs").exists()
    status, _, _ = harness("eval", "--checkpoint", path, *words, "--allow-unexpected")
    (run,) = Study(tmp_path / "runs/digits-nano-released-weights").runs()
    assert status == 0 and run.released is not None
    assert run.released.unexpected == ["head.bias", "head.weight", "version"]


@pytest.mark.usefixtures("toyform")
@pytest.mark.parametrize(
    ("words", "complaint", "help_"),
    [
        ([], "does not say what it holds", "--format"),
        (["--format", "toyfrom"], "unknown format 'toyfrom'", "did you mean 'toyform'?"),
        (["--format", "toyform", "toyform.widht=3"], "'toyform.widht'", "toyform.width"),
        (["--format", "toyform", "toyform.width=3"], "do not fit the settings", "the settings of the file"),
        (["--format", "toyform", "umd.patch=3"], "unknown setting 'umd'", "nothing is trained here"),
        (["--format", "toyform", "train.batch_size=3"], "unknown setting 'train'", "nothing is trained here"),
        (["--format", "toyform", "--evals", "linaer"], "unknown eval 'linaer'", "did you mean 'linear'?"),
        (["--format", "toyform", "--dataset", "digts"], "unknown data set 'digts'", "did you mean 'digits'?"),
        (["--format", "toyform", "--weights", "emma"], "--weights emma", "one of ema, raw"),
        (["--format", "toyform", "runs/some-study"], "runs/some-study beside --checkpoint", "--name and --out"),
        (["--format", "toyform", "knn.kk=3"], "unknown setting 'knn.kk'", "did you mean 'knn.k'?"),
        (["--format", "harness"], "was not written by harness export", "another --format"),
        (["--format", "timm"], "does not say of which architecture", "timm.model=NAME"),
        (["--format", "timm", "timm.model=vit_tinny"], "timm cannot build vit_tinny", "a model that timm knows"),
        (["--format", "timm", "timm.model=resnet18"], "lacks", "conv1.weight"),
    ],
)
def test_bad_words_are_refused_before_any_work(tmp_path, harness, saved, words, complaint, help_):
    path = saved(official())
    status, _, err = harness("eval", "--checkpoint", path, *words, "--out", tmp_path / "runs")
    assert status == 2
    assert complaint in err and help_ in err
    assert not (tmp_path / "runs").exists()


def test_options_of_a_checkpoint_need_one(tmp_path, harness):
    status, _, err = harness("eval", tmp_path, "--format", "mae", "--borrowed", "much")
    assert status == 2 and "--format, --borrowed without --checkpoint" in err
    status, _, err = harness("eval", "knn.k=3")
    assert status == 2 and "no study and no run" in err and "--checkpoint PATH" in err


@pytest.mark.usefixtures("toyform")
def test_a_study_of_released_weights_alone_says_how_to_go_on(tmp_path, harness, saved):
    path = saved(official())
    harness("eval", "--checkpoint", path, "--format", "toyform", "--evals", "knn", "--name", "s", "--out", tmp_path)
    status, _, err = harness("eval", tmp_path / "s")
    assert status == 2 and "holds released weights only" in err and "harness eval --checkpoint PATH" in err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 343\n", "it is a Git LFS pointer"),
        (b"", "it is empty"),
        (b"neither of these", "Weights only load failed"),
    ],
)
def test_what_is_no_checkpoint_is_said_without_advice_to_run_it(tmp_path, content, complaint):
    (tmp_path / "toy.pth").write_bytes(content)
    with pytest.raises(HarnessError, match=f"toy.pth cannot be read as a checkpoint: {complaint}") as refused:
        files.read(tmp_path / "toy.pth")
    assert "False" not in str(refused.value) and "fetch it again" in refused.value.next_step


@pytest.mark.usefixtures("toyform")
def test_settings_over_the_files_own_are_said(tmp_path, harness, saved):
    words = ["--format", "toyform", "--evals", "knn", "--name", "s", "--out", tmp_path]
    path = saved(official())
    assert harness("eval", "--checkpoint", path, *words)[0] == 0
    assert harness("eval", "--checkpoint", path, *words, "toyform.optimizer=sgd")[0] == 0
    said = sorted("set by hand" in " ".join(run.notes) for run in Study(tmp_path / "s").runs())
    assert said == [False, True]
