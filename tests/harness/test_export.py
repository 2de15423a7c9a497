"""Weights for others: what is written is loaded by the other library and gives the same numbers."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from harness import checkpoint, store
from harness.config import plain
from harness.errors import HarnessError
from harness.export.pipeline import HarnessPipeline
from harness.export.run import export_run, restored
from harness.method import DataSpec, Method, Tap
from harness.plugins import load_method
from harness.records import RunRecord
from harness.released.formats import Asked, load
from harness.rng import Rng
from harness.store import RunFolder, Study
from tests.harness.made_study import made_run
from tests.harness.test_data_forms import image_folder

METHODS = ["mae", "umd", "dit", "lmd", "ddae"]
SPEC = DataSpec("digits", channels=1, size=8, classes=10)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A study of one finished run for every method, as far as an export looks at it."""
    out = tmp_path_factory.mktemp("runs")
    for name in METHODS:
        kind = load_method(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            method = kind.create(kind.recipe("nano", SPEC), SPEC)
        run = made_run(name, 0, config=plain(method.config), train={"ema": True})
        folder = Study(out / name).run(run.key)
        store.write(folder.record, run)
        checkpoint.save_snapshot(folder.snapshots, 0.0, method.state_dict())
        move(method)
        checkpoint.save_snapshot(folder.snapshots, 1.0, method.state_dict())
    return out


def run_of(study: Path) -> tuple[RunRecord, RunFolder]:
    (path,) = study.glob("runs/*/run.json")
    return store.read_as(RunRecord, path), RunFolder(path.parent)


def exported(study: Path) -> Method:
    record, folder = run_of(study)
    return restored(folder, record, 1.0)


def move(method: torch.nn.Module, by: float = 0.1) -> None:
    """Every weight away from where training starts: gates and heads that begin at zero would hide a mistake."""
    rng = Rng(1)
    state = {
        name: value + by * rng.normal(name, value.shape) if value.is_floating_point() else value
        for name, value in method.state_dict().items()
        if "pos_embed" not in name and "cls" not in name
    }
    method.load_state_dict(state, strict=False)


@pytest.mark.parametrize("name", METHODS)
def test_our_own_file_is_the_method_again(runs, tmp_path, harness, name):
    status, out, _ = harness("export", runs / name, "--out", tmp_path / "x.safetensors")
    assert status == 0 and f"eval --checkpoint {tmp_path / 'x.safetensors'}" in out
    loaded, method = load(Asked(str(tmp_path / "x.safetensors"))), exported(runs / name)
    again = loaded.method.eval()
    assert (loaded.name, loaded.kind, again.config) == (name, "ema", method.config)
    images = Rng(2).uniform("images", (3, 1, 8, 8)) * 2 - 1
    ours, theirs = (m.features(images, m.taps(), Rng(0)) for m in (method, again))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())


def test_settings_reach_the_method_of_an_exported_file(runs, tmp_path, harness):
    export_run(runs / "mae", "safetensors", tmp_path / "x.safetensors")
    words = ["--checkpoint", tmp_path / "x.safetensors", "--evals", "knn", "--name", "s", "--out", tmp_path]
    assert harness("eval", *words, "mae.rounds=3")[0] == 0
    (run,) = Study(tmp_path / "s").runs()
    assert run.config["rounds"] == 3
    status, _, err = harness("eval", *words, "mae.ruonds=3")
    assert status == 2 and "mae.rounds" in err
    status, _, err = harness("eval", *words, "mae.patch=4")
    assert status == 2 and "does not fit its own config" in err


def test_an_exported_run_evaluates_to_the_very_same_numbers(tmp_path, harness):
    words = ["--evals", "knn", "--name", "before", "--out", tmp_path]
    run = ["--methods", "mae", "--budget", "4step", "train.batch_size=16", "train.snapshots=[0.5]"]
    assert harness("run", *run, *words)[0] == 0
    assert harness("export", tmp_path / "before", "--out", tmp_path / "x.safetensors")[0] == 0
    words = ["--checkpoint", tmp_path / "x.safetensors", "--evals", "knn", "--name", "after", "--out", tmp_path]
    status, out, _ = harness("eval", *words)
    assert status == 0 and "mae, released weights" in out
    (before,), (after,) = Study(tmp_path / "before").runs(), Study(tmp_path / "after").runs()
    assert after.config == before.config and after.borrowed[0].cost == "a run of this harness: 4step on digits, seed 0"
    assert after.cost.flop_features_img == before.cost.flop_features_img
    one, other = (knn(Study(tmp_path / n), r.key) for n, r in (("before", before), ("after", after)))
    assert one == other and one["knn_top1"] > 10


def knn(study: Study, key: str) -> dict[str, float]:
    record = json.loads((study.run(key).evals(1.0) / "knn.json").read_text())
    return {name: number["value"] for name, number in record["numbers"].items()}


def test_the_line_that_is_shown_is_what_a_user_types(runs, tmp_path, harness):
    status, out, _ = harness("export", runs / "mae", "--out", tmp_path / "my run.safetensors")
    assert status == 0
    words = shlex.split(out.splitlines()[1])
    assert words[:3] == ["python", "-m", "harness"]
    status, _, err = harness(*words[3:], "--evals", "knn", "--out", tmp_path)
    assert status == 0, err
    status, _, err = harness(*words[3:], "--evals", "knn", "--out", tmp_path, "--weights", "raw")
    assert status == 2 and "which holds the ema ones" in err
    status, _, err = harness("export", runs / "mae", "--out", tmp_path / "model.pt")
    assert status == 2 and "model.pt.safetensors" in err and not (tmp_path / "model.pt").exists()


def test_a_snapshot_of_any_share_can_be_had(runs, tmp_path):
    first = export_run(runs / "mae", "safetensors", tmp_path / "first.safetensors", share=0.0)
    last = export_run(runs / "mae", "safetensors", tmp_path / "last.safetensors")
    assert first.path.read_bytes() != last.path.read_bytes()
    with pytest.raises(HarnessError, match=r"no weights at 0.3 of its budget\n.* 0.0000, 1.0000"):
        export_run(runs / "mae", "safetensors", tmp_path / "x", share=0.3)


@pytest.mark.parametrize(
    ("name", "tap"),
    [("mae", t) for t in ("cls", "mean", "block3", "block2")]
    + [("umd", t) for t in ("cls", "patches", "block3")]
    + [("dit", t) for t in ("block1", "block2", "block4")],
)
def test_timm_computes_the_features_of_the_method(runs, tmp_path, name, tap):
    import timm

    method = exported(runs / name)
    done = export_run(runs / name, "timm", tmp_path / "vit", tap=tap)
    images = Rng(2).uniform("images", (5, 1, 8, 8)) * 2 - 1
    (ours,) = method.features(images, [t for t in method.taps() if str(t) == tap], Rng(0))
    assert ours.std() > 0.01
    calls = [re.match(r"timm\.create_model\((.*)\)$", line) for line in done.lines]
    for call in [c for c in calls if c]:  # the lines shown are what a user types
        model = eval(f"timm.create_model({call[1]})", {"timm": timm})
        torch.testing.assert_close(model.eval()(images), ours, rtol=1e-5, atol=1e-5)
    assert sum(map(bool, calls)) == 2


def test_the_timm_folder_comes_back_as_the_same_features(runs, tmp_path):
    export_run(runs / "umd", "timm", tmp_path / "vit", tap="patches")
    loaded = load(Asked(str(tmp_path / "vit"), "timm"))
    assert loaded.method.data == DataSpec("released", 1, 8, 0)
    method, again = exported(runs / "umd"), loaded.method.eval()
    images = Rng(2).uniform("images", (3, 1, 8, 8)) * 2 - 1
    ours = method.features(images, [Tap("patches"), Tap("block3")], Rng(0))
    theirs = again.features(images, [Tap("pooled"), Tap("stage3")], Rng(0))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_different_class_tokens_are_refused_with_a_tap_that_works(runs, tmp_path, monkeypatch):
    method = exported(runs / "umd")
    method.network.cls[1] += 0.1
    monkeypatch.setattr("harness.export.run.restored", lambda *_: method)
    with pytest.raises(HarnessError, match="mean of 4 different class tokens") as refused:
        export_run(runs / "umd", "timm", tmp_path / "vit")
    assert refused.value.next_step == "--tap patches" and not (tmp_path / "vit").exists()
    export_run(runs / "umd", "timm", tmp_path / "vit", tap="patches")
    assert (tmp_path / "vit/config.json").is_file()


def test_a_fold_that_is_wrong_leaves_nothing(runs, tmp_path, monkeypatch):
    import methods.umd.export as module

    right = module.folded
    monkeypatch.setattr(module, "folded", lambda block, cond: right(block, cond + 0.5))
    with pytest.raises(HarnessError, match="timm's output differs from the method's"):
        export_run(runs / "umd", "timm", tmp_path / "vit")
    assert list(tmp_path.iterdir()) == []


# -- diffusers ------------------------------------------------------------------------------------------------------

DIT = [
    {},
    {"classes": 5},
    {"labels": True},
    {"sampler": "ddim"},
    {"learn_sigma": False},
    {"schedule": "cosine"},
]


def piped(method: Method, runs: Path, place: Path, monkeypatch) -> HarnessPipeline:
    """The method as diffusers reads it back from what `export` wrote."""
    monkeypatch.setattr("harness.export.run.restored", lambda *_: method)
    done = export_run(runs / type(method).__name__.lower(), "diffusers", place)
    assert "from_pretrained" in done.lines[0] and float(done.lines[2].split()[-2]) < 1e-5
    pipe = HarnessPipeline.from_pretrained(place)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(name: str, by: float = 0.1, **changes) -> Method:
    """A moved network of that method for digits."""
    kind = load_method(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = kind.create(dataclasses.replace(kind.recipe("nano", SPEC), **changes), SPEC)
    move(method, by)
    return method.requires_grad_(False).eval()


@pytest.mark.parametrize("changes", DIT, ids=str)
def test_diffusers_draws_what_dit_draws_from_the_same_noise(runs, tmp_path, monkeypatch, changes):
    import diffusers.schedulers.scheduling_ddpm as ddpm

    method = made("dit", **changes)
    pipe = piped(method, runs, tmp_path / "pipe", monkeypatch)
    start, labels = Rng(3).normal("start", (2, 1, 8, 8)), torch.tensor([1, 4]) if method.classes else None
    grain = [Rng(4).normal(i, start.shape) for i in range(5)]
    ours = method.denoised(start, lambda i: grain[i], labels, 5).clamp(-1, 1)
    left = iter(grain)
    monkeypatch.setattr(ddpm, "randn_tensor", lambda *_, **__: next(left))
    theirs = pipe(latents=start, num_inference_steps=5, class_labels=labels, output_type="pt").images
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("labels", [False, True])
def test_diffusers_draws_what_ddae_draws_from_the_same_noise(runs, tmp_path, monkeypatch, labels):
    """The last norm's groups and the time code, which diffusers' U-Net has otherwise, among the rest."""
    method = made("ddae", by=0.02, labels=labels)
    assert method.config.net.groups != method.config.net.groups_out
    # Little noise and faint start: an untrained network's estimates would all be clipped, and hide a mistake.
    method.network.unet.conv_out.weight.mul_(0.01)
    pipe = piped(method, runs, tmp_path / "pipe", monkeypatch)
    start = 0.01 * Rng(3).normal("start", (2, 1, 8, 8))
    classes = torch.tensor([1, 4]) if labels else None
    ours = method.ddim(start, 5, method.led(classes)).clamp(-1, 1)
    theirs = pipe(latents=start, num_inference_steps=5, class_labels=classes, output_type="pt").images
    assert ours.std() > 0.1 and ours.abs().quantile(0.7) < 1
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"objective": "edm"}, "EDM objective"),
        ({"ddim_schedule": "reference"}, "own schedule"),
        ({"layout": "adm"}, "ADM's layout"),
        ({"sample_steps": 30}, "30 steps do not divide 1000"),
    ],
)
def test_a_ddae_that_diffusers_cannot_say_is_refused(runs, tmp_path, monkeypatch, changes, what):
    monkeypatch.setattr("harness.export.run.restored", lambda *_: made("ddae", **changes))
    with pytest.raises(HarnessError, match=what):
        export_run(runs / "ddae", "diffusers", tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()


def test_a_user_loads_the_pipeline_as_it_is_told(runs, tmp_path, monkeypatch):
    import diffusers
    import diffusers.utils.dynamic_modules_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    done = export_run(runs / "dit", "diffusers", tmp_path / "pipe")
    pipe = eval(done.lines[0], {"diffusers": diffusers})
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=2).images
    assert [image.size for image in images] == [(8, 8), (8, 8)]
    assert (tmp_path / "pipe/pipeline.py").read_text() in [p.read_text() for p in tmp_path.rglob("pipeline.py")][1:]
    with pytest.raises(ValueError, match="5000 steps"):
        pipe(num_inference_steps=5000)


@pytest.mark.parametrize(
    ("name", "words", "complaint", "help_"),
    [
        ("mae", ["--to", "onnx"], "unknown form 'onnx'", "safetensors"),
        ("mae", ["--to", "diffusers"], "mae cannot be written for diffusers", "--to safetensors always works"),
        ("lmd", ["--to", "timm"], "reads the latents of a VAE", "a method on pixels"),
        ("umd", ["--to", "timm", "--tap", "cls@50"], "unknown tap 'cls@50'", "noise level"),
        ("umd", ["--tap", "cls"], "--tap cls for safetensors", "--to timm only"),
        ("", ["--to", "timm"], "no run in", "STUDY/runs/KEY"),
    ],
)
def test_what_cannot_be_written_is_said(runs, tmp_path, harness, name, words, complaint, help_):
    status, _, err = harness("export", runs / name, *words, "--out", tmp_path / "x")
    assert status == 2 and complaint in err and help_ in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["dit", "ddae"])
def test_a_labelled_pipeline_draws_classes_with_the_methods_guidance(runs, tmp_path, monkeypatch, name):
    pipe = piped(made(name, by=0.02, labels=True, guidance=2.0), runs, tmp_path / "pipe", monkeypatch)
    seen, denoise = [], pipe.denoise
    monkeypatch.setattr(pipe, "denoise", lambda x, t, y, s: seen.append((y, s)) or denoise(x, t, y, s))
    words = {"num_inference_steps": 1, "output_type": "pt"}
    pipe(batch_size=64, generator=torch.manual_seed(0), **words)
    labels, guidance = seen[-1]
    assert set(labels.tolist()) == set(range(10)) and guidance == 2.0
    x, y = Rng(3).normal("start", (2, 1, 8, 8)), torch.tensor([1, 4])
    free, led, far = (denoise(x, 500, *told) for told in ((), (y,), (y, 2.0)))
    torch.testing.assert_close(far[:, :1], (2 * led - free)[:, :1])
    torch.testing.assert_close(far[:, 1:], led[:, 1:])


def test_a_reader_of_anothers_pre_training_is_written_as_its_source_is(runs, tmp_path, monkeypatch):
    method = made("difformer")
    monkeypatch.setattr("harness.export.run.restored", lambda *_: method)
    run = made_run("difformer", 0, config=plain(method.config))
    store.write(Study(tmp_path).run(run.key).record, run)
    done = export_run(tmp_path, "diffusers", tmp_path / "pipe")
    assert "UNet2DModel" in done.lines[1]
    network = HarnessPipeline.from_pretrained(tmp_path / "pipe").network
    assert torch.equal(network.conv_in.weight, method.network.unet.conv_in.weight)


def test_labels_for_a_pipeline_without_any_are_refused(runs, tmp_path, monkeypatch):
    pipe = piped(made("ddae"), runs, tmp_path / "pipe", monkeypatch)
    with pytest.raises(ValueError, match="knows none"):
        pipe(class_labels=torch.tensor([1]), num_inference_steps=1)


def test_a_file_is_never_written_over(runs, tmp_path, harness):
    (tmp_path / "x.safetensors").write_bytes(b"mine")
    status, _, err = harness("export", runs / "mae", "--out", tmp_path / "x.safetensors")
    assert status == 2 and "is there already" in err and (tmp_path / "x.safetensors").read_bytes() == b"mine"


def test_a_folder_is_never_written_over(runs, tmp_path, harness):
    (tmp_path / "x").mkdir()
    status, _, err = harness("export", runs / "mae", "--to", "timm", "--out", tmp_path / "x")
    assert status == 2 and "is there already" in err and list((tmp_path / "x").iterdir()) == []


def test_a_run_on_a_users_own_folder_is_written_too(tmp_path, harness):
    """The record, not the data set's name, knows which images the network was made for; the folder may be gone."""
    images = image_folder(tmp_path / "birds")
    words = ["--methods", "mae", "--dataset", f"folder:{images}?size=16", "--budget", "2step", "--evals", "knn"]
    words += ["train.batch_size=8", "train.snapshots=[]", "--name", "s", "--out", tmp_path]
    assert harness("run", *words)[0] == 0
    shutil.rmtree(images)
    status, _, err = harness("export", tmp_path / "s", "--out", tmp_path / "birds.safetensors")
    assert status == 0, err
    spec = load(Asked(str(tmp_path / "birds.safetensors"))).method.data
    assert (spec.name, spec.channels, spec.size, spec.classes) == ("folder-birds", 3, 16, 2)
