"""Where a study runs: in this process, by workers of this machine, or on a cluster. Asked for without torch."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace

from harness import gpus
from harness.errors import HarnessError
from harness.launch import options, queue
from harness.launch.options import Launch
from harness.launch.queue import Queue, Unreachable


def where(launch: Launch) -> tuple[Launch, str]:
    """The launch with `auto` settled, and a line on why; the line is empty where there was nothing to choose.

    Raises HarnessError where a cluster is set up and does not answer, and in the shell of an allocation that is not on
    its nodes: this may be a login node, no place to train.
    """
    if launch.cluster != "auto":
        return launch, ""
    if "SLURM_JOB_ID" in os.environ:
        if "SLURMD_NODENAME" not in os.environ:  # which slurmd sets; salloc opens a shell where it was typed
            raise HarnessError(
                f"a shell with the allocation {os.environ['SLURM_JOB_ID']}, and not on a node of it",
                "to be told where to run: this may be a login node",
                "srun --pty bash, and the command in it; --cluster slurm submits jobs, --cluster inline runs here",
            )
        return replace(launch, cluster="inline"), "inside a job already: running in it"
    if not queue.here():
        return _without_cluster(launch)
    try:
        Queue(patience_s=0).partitions()
    except Unreachable as error:
        raise HarnessError(
            f"SLURM is set up here, but: {error.found.splitlines()[-1]}",
            "a cluster that answers, or to be told to do without it",
            "repeat the command when sinfo answers; or --cluster inline to run on this machine",
        ) from error
    except HarnessError as error:
        settled, why = _without_cluster(launch)
        if queue.UNCONFIGURED in error.found:
            return settled, f"SLURM's programs are here, no cluster is set up: running on this machine. {why}".strip()
        said = error.found.splitlines()[-1]
        return settled, f"SLURM is set up here, but: {said}; running on this machine. {why}".strip()
    return replace(launch, cluster="slurm"), "a SLURM cluster answers: submitting to it (--cluster inline runs here)"


def _without_cluster(launch: Launch) -> tuple[Launch, str]:
    count = gpus.count()
    if count > 1:
        return replace(launch, cluster="local"), f"{count} GPUs here: one worker each (--cluster inline uses one)"
    return replace(launch, cluster="inline"), ""


LOCAL = ("cluster", "gpus", "tries")  # what workers of this machine know of the options


def refuse_idle(launch: Launch, given: Collection[str]) -> None:
    """Raise HarnessError for an option that says how jobs run, where it would say nothing.

    `given` are the options on the command line; a profile or a study file may say more than one way of running needs.
    """
    known = {"inline": ("cluster",), "local": LOCAL}.get(launch.cluster)
    idle = [] if known is None else [name for name in given if name not in known]
    if not idle:
        return
    option = f"--{idle[0]}" if idle[0] in options.OPTIONS else f"cluster.{idle[0]}"
    if idle[0] == "slurm":
        option = "slurm.KEY=VALUE"
    if launch.cluster == "local":
        found, expected = f"{option} is for a cluster, and workers of this machine ignore it", "--cluster slurm"
    else:
        found, expected = f"{option} is for jobs, and this runs in its own process", "--cluster slurm or local"
    raise HarnessError(found, expected, "or leave it out")
