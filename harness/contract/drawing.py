"""What a method promises of its pictures: images in range that follow the key, and a class where labels teach it."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.contract.subject import Broken, NotApplicable, Subject, listed
from harness.evaluation import can
from harness.method import Method
from harness.rng import Rng


def samples(subject: Subject) -> str:
    if not can(subject.cls, "sample"):
        raise NotApplicable("it cannot draw: it has no `sample`")
    method = subject.build()
    subject.warm(method, subject.batch(method, 64))
    with torch.no_grad():
        first, again, other = (method.sample(3, rng, steps=4) for rng in (subject.rng, subject.rng, Rng(8)))
    _are_images(subject, first)
    its_rng = "draw every number of `sample` from the rng it is given (rng.normal, rng.uniform, rng.permutation)"
    if not torch.equal(first, again):
        raise Broken("two samples with one key differ", its_rng)
    if torch.equal(first, other):
        raise Broken("samples with another key are the same", its_rng)
    if torch.equal(first[0], first[1]):
        raise Broken("the samples of one call are all the same", "draw for each of the n images: shapes [n, ...]")
    return f"in [{first.min():.2f}, {first.max():.2f}], {method.sampler(4)}"


def _are_images(subject: Subject, drawn: Tensor) -> None:
    expected = (3, subject.spec.channels, subject.spec.size, subject.spec.size)
    if drawn.shape != expected:
        raise Broken(f"three samples have the shape {list(drawn.shape)}", f"return [n, C, H, W], here {list(expected)}")
    if not drawn.isfinite().all():
        raise Broken("samples are not finite", "look for a division by zero or an overflow in `sample`")
    if drawn.min() < -1 or drawn.max() > 1:
        raise Broken(f"samples lie in [{drawn.min():.3g}, {drawn.max():.3g}]", "clamp them to [-1, 1]")


def labelled(subject: Subject) -> str:
    """Taught with labels, it starts from its weights, learns, and draws the class it is asked for."""
    if not can(subject.cls, "labelled"):
        raise NotApplicable("it cannot be taught to draw a class: it has no `labelled`")
    before = subject.build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = before.labelled()
    if not method.sees_labels:
        raise Broken("what `labelled` returns has sees_labels = False", "set it to True: records and tables say so")
    state = method.state_dict()
    other = [n for n, t in before.state_dict().items() if n not in state or not torch.equal(state[n], t)]
    if other:
        raise Broken(f"`labelled` does not keep the weights {listed(other)}", "harness.method.inherit copies them")
    batch = subject.batch(method, 64)._replace(labels=subject.data.fit.labels[:64])
    subject.steps(method, batch, 4, lr=1e-2)
    idle = [n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    if idle:
        raise Broken(
            f"with labels no gradient reaches {listed(idle)}", "use batch.labels in the `pretrain` of what it returns"
        )
    _draws_classes(subject, method.eval())
    return "another label draws another picture"


@torch.no_grad()
def _draws_classes(subject: Subject, method: Method) -> None:
    def drawn(second: int, guidance: float) -> Tensor:
        return method.sample(2, subject.rng, labels=torch.tensor([0, second]), steps=4, guidance=guidance)

    one, other, plain = drawn(1, 1.5), drawn(2, 1.5), drawn(1, 1.0)
    if one.shape[1:] != subject.images(1).shape[1:] or not one.isfinite().all():
        raise Broken(f"samples with labels have the shape {list(one.shape)} or are not finite", "return [n, C, H, W]")
    if not torch.allclose(one[0], other[0], rtol=1e-4, atol=1e-4):
        raise Broken("a picture depends on the labels of the others", "let each image have its own label and key")
    if torch.allclose(one[1], other[1], atol=1e-3):
        raise Broken("with another label the picture is the same", "give `labels` to the network in `sample`")
    if torch.allclose(one, plain, atol=1e-3):
        raise Broken(
            "guidance 1.5 draws what guidance 1 draws", "go `guidance` times the way from no label to the label"
        )
