"""What says that the yardstick itself is right: real images against real ones, and a value known from the literature.

Half a training set is at no distance from the other half but for the count of images. A measured distance far above
what that count explains means that the network, the reference or the resizing is wrong, and so is every row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from evals import _frechet

if TYPE_CHECKING:
    from evals._extractors import Extractor
    from evals._yardstick import Real
    from harness.evaluation import Context

FACTOR = 3.0  # times what Gaussian features would give; real features have heavier tails and fewer images than numbers
SIDE, TRAIN = 32, 50_000  # CIFAR-10 as its makers gave it
KNOWN = (2.9, 3.4)  # FID of CIFAR-10's 10,000 test images to its 50,000 of train: about 3.15 in the literature


class Check(NamedTuple):
    facts: dict[str, Any]
    said: str  # for the foot of the table
    alarm: str | None  # what is wrong, where something is


def canary(extractor: Extractor, real: Real, n: int, name: str) -> Check:
    """`n` images of the real part `name`, but half of them at most, against all its others."""
    n = min(n, len(real.features), real.all.n // 2)
    head = _frechet.statistics(real.features[:n])
    rest = _frechet.without(real.all, head)
    value = _frechet.frechet(head, rest)
    expected = _frechet.expected(real.all, n, rest.n)
    word = "FID" if extractor.is_inception else "FD"
    said = (
        f"canary: {n} images of {name} against its other {rest.n}: {word} ({extractor.label}) {value:.3f}; "
        f"Gaussian features of this covariance would give about {expected:.3f}; {FACTOR:g} times that is an alarm"
    )
    facts = {"n": n, "others": rest.n, "frechet": round(value, 6), "expected": round(expected, 6)}
    alarm = f"DO NOT TRUST {word} ({extractor.label}): real against real is {value:.3f}, {expected:.3f} was expected"
    return Check(facts, said, alarm if value > FACTOR * expected else None)


def known(context: Context, extractor: Extractor, train: Real) -> Check | None:
    """CIFAR-10's test part against its train part, where it is the real one and Inception looks; else None.

    Opens the test part. The interval is wide: implementations differ in the second digit after the point.
    """
    from evals import _yardstick

    spec = context.data.spec
    if not extractor.is_inception or (spec.name, spec.size, train.all.n) != ("cifar10", SIDE, TRAIN):
        return None
    test = _yardstick.reference(context, extractor, "test")
    value, (low, high) = _frechet.frechet(test.all, train.all), KNOWN
    said = f"known: FID of the {test.all.n} test images to the {TRAIN} of train {value:.2f}; it has to be near 3.15"
    alarm = f"DO NOT TRUST FID: test to train of CIFAR-10 is {value:.2f}, known to be between {low} and {high}"
    facts = {"frechet": round(value, 6), "low": low, "high": high}
    return Check(facts, said, None if low <= value <= high else alarm)
