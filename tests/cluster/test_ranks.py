"""One run by two processes on two nodes, which meet by gloo: against the same run in one process."""

from __future__ import annotations

import pytest

from harness.launch.folders import Batches
from harness.launch.truth import logs
from tests.cluster.cluster import Cluster
from tests.cluster.studies import SLURM, SMALL, Study, Toys, pretraining

STEPS = 12
RUN = ("run", "--methods=held", f"--budget={STEPS}step", *SMALL, "train.log_s=1e-9")


def losses(study: Study) -> list[float]:
    """Of each step of the study's one run, each of which is in the log once."""
    (key,) = study.keys
    lines = study.lines(key)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("meeting", ["tcp", "file"])
def test_two_processes_on_two_nodes_train_what_one_does(slurm: Cluster, toys: Toys, meeting: str):
    begun = toys.typed(*RUN, "--name=both", "--nodes=2", f"cluster.rendezvous={meeting}", "--detach", *SLURM)
    assert begun.status == 0, begun.err
    study = toys.study("both")
    (key,) = study.keys
    toys.park("evaluate")
    toys.release()
    alone = toys.typed(*RUN, "--name=alone", "--cluster=inline")
    assert alone.status == 0, alone.err
    task = pretraining(key)
    toys.wait(lambda: study.end(task) is not None, "the run's end")

    assert study.end(task).state == "done", study.end(task).message
    assert slurm.squeue()[study.job(task)].node == "n[1-2]"
    record = study.record(key)
    assert record.state == "finished" and record.environment.devices == 2
    assert record.spend.device_s == pytest.approx(2 * record.spend.wall_s)
    assert losses(study) == pytest.approx(losses(toys.study("alone")), rel=1e-5)
    assert len(list(study.place.run(key).snapshots.iterdir())) == 2
    said = [path.read_text() for path in logs(study.place, study.claims(task)[0]) if path.suffix == ".out"]
    assert len(said) == 2
    assert all(f"Num processes: 2; Process index: {rank}; Local process index: 0" in said[rank] for rank in (0, 1))
    assert all("Backend: gloo" in text for text in said)
    assert Batches(study.place).read(study.claims(task)[0].batch).rendezvous == meeting
