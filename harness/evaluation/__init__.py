"""The evaluation protocol: what an eval may see of a checkpoint and of the data, and the record it leaves.

An eval is a module `evals/<name>.py` (or an entry point in the group `harness.evals`) with

    TITLE, PROTOCOL, NEEDS      a title, the version of its rule, and the verb it needs: "features", "sample" or
                                "labelled"
    Config, recipe(size)        its settings as a frozen dataclass, and their values for a size
    evaluate(context, config)   -> Outcome, or None where it does not run (a snapshot it is too dear for)

and, where they hold,

    FULL_ONLY = True            it is too dear for snapshots, and is not asked for them
    TRAINED_ONLY = True         its numbers are those of trained weights; untrained ones and references are not asked
    require(config, data_dir)   raises HarnessError where data sets of its own are not here: asked before any work
    revisions(config, data_dir) those data sets' revisions by name: a record of others is done again
    READS                       what of a method's code its numbers rest on, where that is more than NEEDS tells:
                                methods that share a pre-training and these are evaluated once (harness/shared.py)

What is random in an eval (noise at a tap, a draw of shots, a head's start, a set of samples) is repeated over its own
`seeds`, three by default; `measured` makes the Number of them. Choices are made once, on the first.

Evals import heavy libraries inside their functions, because `harness list` reads their titles.
"""

from harness.evaluation.choose import Choice
from harness.evaluation.context import Context
from harness.evaluation.record import Outcome, Subject, can, evaluate, measured, verbs

__all__ = ["Choice", "Context", "Outcome", "Subject", "can", "evaluate", "measured", "verbs"]
