"""`harness plan`: what a study would cost, from its budgets and from records alone; what would be refused, and why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.answers import Answers
from harness.config import plain
from harness.data import cache, dataset
from harness.data.glance import Glance, glance
from harness.plan import disk
from harness.plan.width import makespan_s
from harness.plugins import load_eval
from harness.resolve import eval_config, jobs
from harness.study import build
from tests.harness.made_study import ENVIRONMENT, made_eval, made_run, write_study

TINY = ["--methods", "mae", "--budget", "6step", "--evals", "knn", "train.batch_size=16", "train.snapshots=[0.5]"]
HERE = ENVIRONMENT.model_copy(update={"device": "Example (2 cores)"})
SINFO = "main*|infinite|gpu:h100:4(S:0-1)|3|up|8\\nshort|30:00|(null)|2|up|8"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Whatever this machine has, `auto` finds no cluster and no GPU."""
    from harness.launch import queue

    monkeypatch.setattr(queue.shutil, "which", lambda name: None)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.fixture
def fake_slurm(monkeypatch, tmp_path):
    """`sinfo` and the rest on the PATH, as a cluster of two partitions answers."""
    monkeypatch.undo()
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, said in (("sinfo", SINFO), ("sbatch", "no"), ("squeue", "")):
        (folder / name).write_text(f'#!/bin/sh\nprintf "{said}\\n"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def row(out: str, start: str) -> list[str]:
    """The words of the first line that starts so."""
    return next(line for line in out.splitlines() if line.startswith(start)).split()


def line(out: str, start: str) -> str:
    return next(line for line in out.splitlines() if line.startswith(start))


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# -- how long ---------------------------------------------------------------------------------------------------------


def test_wall_time_of_a_graph_by_hand():
    # a ###ccc      two at a time: a and b begin; d follows b, which ends first; c waits for a
    # b ##d
    tasks = [("a", [], 3.0), ("b", [], 2.0), ("c", ["a"], 3.0), ("d", ["b"], 1.0)]
    assert makespan_s(tasks, 1) == 9.0
    assert makespan_s(tasks, 2) == 6.0
    assert makespan_s(tasks, 9) == 6.0
    assert makespan_s([("c", ["a", "gone"], 3.0), ("a", [], 1.0)], 1) == 4.0  # what is not there is done
    assert makespan_s([], 3) == 0.0


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_a_study_that_nobody_ran_is_charged_exactly_and_guessed_never(harness, tmp_path):
    words = ["--methods", "mae,umd", "--budget", "90s", "--seeds", "2", "--evals", "knn", "train.snapshots=[0.5]"]
    status, out, _ = harness("plan", *words, "--out", tmp_path)
    assert status == 0
    assert row(out, "pretrain")[:6] == ["pretrain", "4", "0", "4", "6:00", "wall"]
    assert row(out, "evaluate at 1") == ["evaluate", "at", "1", "4", "0", "4", "–", "not", "known", "yet", "(8)", "–"]
    assert row(out, "evaluate at 0.5")[:6] == ["evaluate", "at", "0.5", "4", "0", "4"]
    assert row(out, "references")[1:4] == ["1", "0", "1"]
    assert line(out, "still to charge: ").startswith("still to charge: 6:00 wall; once for each pre-training")
    assert "not known yet, as no record is like it: checkpoint (4), compile (4), knn" in out
    assert line(out, "wall time, 1 job(s)").startswith("wall time, 1 job(s) at a time: at least 6:00, without")
    assert not list(tmp_path.iterdir())


def planted(out: Path) -> None:
    """A study in which 500 steps took 50 s, and full kNN 10, 12 and 20 s."""
    config = plain(eval_config(build({"methods": "mae", "budget": "1s"}), "knn", "nano"))
    runs, evals = [], []
    for seed, seconds in enumerate((10.0, 20.0, 12.0)):
        run = made_run("mae", seed, key=f"mae-digits-nano-1min-s{seed}-planted", environment=HERE)
        ledger = run.ledger | {"train": 50.0, "compile": 3.0, "checkpoint": 0.5}
        spend = run.spend.model_copy(update={"wall_s": 50.0, "step": 500.0})
        runs.append(run.model_copy(update={"ledger": ledger, "spend": spend}))
        about = {"config": config, "protocol": load_eval("knn").PROTOCOL, "environment": HERE}
        evals.append(made_eval(run, "knn", 90.0, ledger={"select": 1.0, "evaluate": seconds - 1}, **about))
        evals.append(made_eval(run, "knn", 80.0, cheap=True, ledger={"evaluate": 2.0}, **about))
    write_study(out / "earlier", runs, evals)


def test_estimates_are_medians_of_records_and_say_on_how_many_they_rest(harness, tmp_path):
    planted(tmp_path)
    words = ["--methods", "mae", "--budget", "100step", "--evals", "knn", "train.snapshots=[]"]
    status, out, _ = harness("plan", *words, "--out", tmp_path)
    assert status == 0
    assert row(out, "pretrain")[4:6] == ["100", "step"]
    assert "that is about 0:10 of wall time for 1 run(s), on 3 or more records each" in out
    assert "about 0:03" in line(out, "pretrain")  # compile 3 s, and 0.5 s of checkpoints in 50 s: 0.1 s in 10 s
    assert "about 0:14" in line(out, "evaluate at 1 ") and "about 0:14" in line(out, "evaluate at 0 ")
    assert "(1)" in line(out, "references")  # kNN of raw pixels: no record
    assert "of 3 record(s) of the same eval" in line(out, "not charged")
    # 10 + 3.1 of training, then 2 x 14 of evaluation, one after another or both at once
    assert "at least 0:41" in line(out, "wall time")
    _, out, _ = harness("plan", *words, "--out", tmp_path, "--parallel", "2")
    assert "2 job(s) at a time: at least 0:27" in line(out, "wall time")


def test_records_of_other_methods_serve_where_there_are_none_and_of_other_settings_never(harness, tmp_path):
    planted(tmp_path)
    words = ["--methods", "umd", "--budget", "100s", "--evals", "knn", "--out", tmp_path]
    _, out, _ = harness("plan", *words)
    assert "about 0:14" in line(out, "evaluate at 1 ") and "by records of other methods" in out
    _, out, _ = harness("plan", *words, "knn.k=7")
    assert "about" not in line(out, "evaluate at 1 ")


def test_a_budget_that_records_say_is_too_small_is_refused(harness, tmp_path):
    planted(tmp_path)  # 812.3 images/s: a batch of 128 takes 0.158 s
    status, out, _ = harness("plan", "--methods", "mae", "--budget", "0.1s", "--evals", "knn", "--out", tmp_path)
    assert status == 1
    assert "the budget 0.1s is too small: a step took 0.158 s in 3 earlier run(s)" in out
    status, _, _ = harness("plan", "--methods", "mae", "--budget", "0.2s", "--evals", "knn", "--out", tmp_path)
    assert status == 0


def test_a_shared_pre_training_is_charged_once(harness, tmp_path):
    words = ["--methods", "difformer,ddae", "--budget", "1min", "--evals", "knn", "--out", tmp_path]
    _, out, _ = harness("plan", *words)
    assert row(out, "pretrain")[1:6] == ["1", "0", "1", "1:00", "wall"]
    assert "shared with ddae" in line(out, "difformer") and "shared: ddae digits" in out


# -- a study that was run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["harness", "run", *TINY, "--cluster", "inline", "--name", "tiny", "--out", str(out)]
        )
        with pytest.raises(SystemExit, match="0"):
            main()
    return out


def test_what_is_done_is_not_priced_again_and_nothing_is_written(harness, finished):
    before = tree(finished)
    status, out, _ = harness("plan", *TINY, "--name", "tiny", "--out", finished)
    assert status == 0
    assert row(out, "pretrain")[1:5] == ["1", "1", "0", "nothing"]
    assert "kept: 5 of 5 jobs are done and not repeated" in out
    assert "still to charge" not in out and "wall time" not in out
    assert tree(finished) == before


def test_the_disk_it_counts_is_what_a_run_leaves(finished):
    (job,) = jobs(build({"methods": "mae", "budget": "6step", "train": {"batch_size": 16, "snapshots": [0.5]}}))
    counted = disk.size(job)
    (run,) = (finished / "tiny" / "runs").iterdir()
    (checkpoint,) = (run / "checkpoints").iterdir()
    snapshots = [path.stat().st_size for path in (run / "snapshots").iterdir()]
    assert len(snapshots) == 3
    assert all(counted.snapshot_bytes == pytest.approx(size, rel=0.02) for size in snapshots)
    assert counted.checkpoint_bytes == pytest.approx(checkpoint.stat().st_size, rel=0.05)


def test_latents_are_counted_where_a_method_trains_on_them(tmp_path):
    lmd, mae = jobs(build({"methods": "lmd,mae", "budget": "1s"}))
    assert disk.size(mae).latents_bytes == 0
    size, images = disk.size(lmd).latents_bytes, lmd.data.fit_n  # digits have no mirrored view
    assert size > 0 and size % (4 * images) == 0


def test_a_disk_that_is_too_small_is_warned_of(harness, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    status, out, _ = harness("plan", *TINY, "--out", tmp_path)
    assert status == 0 and "do not fit on the disk" in out and "choose another --out" in out


# -- data -------------------------------------------------------------------------------------------------------------


def test_a_glance_gives_the_revision_and_writes_no_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "MIN_BYTES", 1)  # so that digits, too, are cached

    def look(exact: bool) -> Glance:
        return glance("digits", None, exact, Answers())

    assert look(exact=False).revision == ""
    undecoded = look(exact=True)
    assert not cache.folder().exists() and not undecoded.decoded
    whole = dataset.load("digits")
    decoded = look(exact=False)
    assert undecoded.revision == decoded.revision == whole.revision and decoded.decoded
    assert undecoded.spec == whole.spec and undecoded.fit_n == whole.fit_n
    assert decoded.shape == tuple(whole.train.images.shape) and decoded.nbytes == whole.train.images.nbytes


# -- what would be refused --------------------------------------------------------------------------------------------


def test_everything_that_would_be_refused_is_listed_with_what_to_type(harness, tmp_path):
    words = ["--methods", "mae,umd", "--budget", "2gpu-h,1min", "--evals", "knn,detection", "--out", tmp_path]
    status, out, _ = harness("plan", *words, "--dataset", "digits,stl10", "--data-dir", tmp_path, "--gpus", "2")
    assert status == 1
    refused = out.split("refused   ")[1:]
    assert len(refused) == 4
    assert all("next: " in part for part in refused)
    assert "--gpus is for jobs" in out
    assert "--budget 2gpu-h is counted in GPU time" in out and "next: --budget 2h for wall time" in out
    assert "'stl10' was not found" in out
    assert "harness data fetch stl10; or, where you have it, --data-dir FOLDER" in out
    assert "'detection' has no data set" in out
    assert "2:00:00 GPU" in line(out, "mae digits nano 2gpu-h")  # what can be priced is


def test_no_cluster_where_one_is_asked_for(harness, tmp_path):
    status, out, _ = harness("plan", *TINY, "--cluster", "slurm", "--out", tmp_path)
    assert status == 1
    assert "no sbatch on this machine" in out and "--cluster inline to run on this machine" in out


# -- the cluster ------------------------------------------------------------------------------------------------------


def test_what_the_cluster_says_and_how_long_runs_are_chained(harness, tmp_path, fake_slurm):
    words = ["--methods", "mae", "--budget", "20gpu-h", "--evals", "knn", "--gpus", "2", "--out", tmp_path / "runs"]
    status, out, _ = harness("plan", *words)
    assert status == 0, out
    assert "runs as jobs of SLURM: a SLURM cluster answers" in out
    assert " * main: 3 node(s) of 4 h100 GPU(s), 8 CPUs, no limit" in out
    assert "   short: 2 node(s) of 0 GPU(s), 8 CPUs, limit 30:00" in out
    # 20 GPU hours on 2 GPUs are 10 hours, and a job of 4 hours works for all but its last two minutes
    assert "1 node(s) of 2 GPU(s) in 'main' for at most 4:00:00 a job" in out and "chained in 3 jobs" in out
    assert "6 job(s) at a time, once they start: at least 10:00:00" in out  # two on each of three nodes
    assert "20:00:00 GPU" in line(out, "pretrain")


def test_wall_time_is_charged_on_every_device(harness, tmp_path, fake_slurm):
    words = ["--methods", "mae", "--budget", "1h", "--evals", "knn", "--gpus", "4", "--nodes", "2"]
    _, out, _ = harness("plan", *words, "--out", tmp_path / "runs", "--parallel", "3")
    assert "8:00:00 GPU" in line(out, "pretrain")
    assert "charged on each of the 8 devices" in out and "3 job(s) at a time" in out


def test_every_problem_with_a_partition_is_listed(harness, tmp_path, fake_slurm):
    words = ["--methods", "mae", "--budget", "1gpu-h", "--evals", "knn", "--out", tmp_path / "runs"]
    status, out, _ = harness("plan", *words, "--partition", "short", "--nodes", "5", "--time", "2h")
    assert status == 1
    assert "--nodes 5, and the partition 'short' has 2" in out and "next: --nodes 2" in out
    assert "--budget 1gpu-h is counted in GPU time, and the jobs have no GPU" in out
    assert "--time 2h, and the partition 'short' ends jobs after 30:00" in out and "--time 30min" in out
    status, out, _ = harness("plan", *words, "--time", "130s")
    assert status == 1 and "one checkpoint is made every 30 s" in out and "a longer --time" in out
    status, out, _ = harness("plan", *words, "--partition", "mian")
    assert status == 1 and "unknown partition 'mian'" in out and "did you mean 'main'?" in out
