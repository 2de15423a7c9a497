"""Where a study runs that is not told where."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.launch.options import Launch
from harness.launch.where import where
from tests.harness.launched import programs


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    monkeypatch.delenv("SLURM_CONF", raising=False)


def test_a_cluster_that_answers_is_submitted_to(tmp_path, monkeypatch):
    programs(tmp_path, monkeypatch, sbatch="exit 0", sinfo="echo 'main*|1:00:00|(null)|4|up|2'")
    launch, why = where(Launch(cluster="auto"))
    assert launch.cluster == "slurm" and "--cluster inline runs here" in why


def test_one_that_does_not_is_no_reason_to_train_on_its_login_node(tmp_path, monkeypatch):
    away = "echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    programs(tmp_path, monkeypatch, sbatch="exit 0", sinfo=away)
    with pytest.raises(HarnessError, match=r"SLURM is set up here, but: .*Unable to contact slurm controller") as told:
        where(Launch(cluster="auto"))
    assert "--cluster inline to run on this machine" in told.value.next_step
    assert where(Launch(cluster="inline"))[0].cluster == "inline"


def test_programs_of_a_cluster_that_was_never_set_up_are_none(tmp_path, monkeypatch):
    never = "echo 'sinfo: error: resolve_ctls_from_dns_srv: no configuration source' >&2; exit 1"
    programs(tmp_path, monkeypatch, sbatch="exit 0", sinfo=never)
    monkeypatch.setattr("harness.gpus.count", lambda: 0)
    launch, why = where(Launch(cluster="auto"))
    assert launch == Launch(cluster="inline") and "no cluster is set up: running on this machine" in why


def test_a_controller_that_hands_out_the_configuration_and_is_away_is_an_outage(tmp_path, monkeypatch):
    away = """echo 'sinfo: error: fetch_config: DNS SRV lookup failed
sinfo: error: _establish_config_source: failed to fetch remote configs
sinfo: fatal: Could not establish a configuration source' >&2; exit 1"""
    programs(tmp_path, monkeypatch, sbatch="exit 0", sinfo=away)
    with pytest.raises(HarnessError, match="SLURM is set up here, but: SLURM's controller does not answer"):
        where(Launch(cluster="auto"))


def test_in_a_job_it_runs_in_the_job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    launch, why = where(Launch(cluster="auto"))
    assert launch.cluster == "inline" and why == "inside a job already: running in it"


def test_a_shell_of_salloc_on_the_login_node_is_no_place_to_train(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(HarnessError, match="the allocation 17, and not on a node of it") as told:
        where(Launch(cluster="auto"))
    assert "srun --pty" in told.value.next_step
    assert where(Launch(cluster="slurm"))[0].cluster == "slurm"


def test_a_cluster_that_is_set_up_wrongly_is_said_to_be(tmp_path, monkeypatch):
    wrong = "echo 'sinfo: fatal: Unable to process configuration file' >&2; exit 1"
    programs(tmp_path, monkeypatch, sbatch="exit 0", sinfo=wrong)
    monkeypatch.setattr("harness.gpus.count", lambda: 0)
    launch, why = where(Launch(cluster="auto"))
    assert launch.cluster == "inline" and "Unable to process configuration file; running on this machine" in why
