"""What `run` tells later plans: with its methods imported, their answers cost next to nothing."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from harness.answers import Answers
from harness.data.glance import glance
from harness.plan import disk
from harness.plan.planned import of_job, settings
from harness.resolve import Job, dataset
from harness.study import Study

log = logging.getLogger(__name__)


def remember(study: Study, todo: Collection[Job], data_dir: Path | None, answers: Answers) -> None:
    """Keep what a plan of the study would ask. Nothing that fails here stops the run."""
    if answers.folder is None:
        return
    try:
        given, sets = settings(study), {}
        for name in study.dataset:  # as it was asked for: `cifar10` may have been found as its JPEG form
            read = dataset(name, data_dir)
            sets[read.spec.name] = glance(name, data_dir, True, answers, read)
        for job in todo:
            known = of_job(job, sets[job.cell.dataset], answers, given)
            disk.known(known.source or known, answers)
    except Exception as error:
        log.info("nothing is kept for later plans: %s", error)
