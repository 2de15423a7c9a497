"""What a method promises of its features: the same every time, of one shape, of every image its own, and trainable."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.contract.subject import Broken, NotApplicable, Subject, listed, prepared
from harness.method import Method, Tap
from harness.train import flops

ITS_RNG = "let `features` depend on the images, the weights and the rng it is given, and on nothing else"


def features(subject: Subject) -> str:
    """Deterministic, finite, [B, D], and the same whatever else is asked for at once."""
    method = subject.build().eval()
    images, taps = subject.images(), method.taps()
    if not taps or len(taps) != len(set(taps)):
        raise Broken(f"`taps` gives {listed(taps) or 'none'}", "let it list each place where features are read, once")
    with torch.no_grad():
        together = _read(subject, method, images, taps)
    again = _read(subject, method, images, taps)
    for tap, first, second in zip(taps, together, again, strict=True):
        _shaped(tap, first, len(images))
        if not torch.equal(first, second):
            apart = (first - second).abs().max()
            raise Broken(f"features at {tap} differ between two equal calls, by up to {apart:.3g}", ITS_RNG)
        (alone,) = _read(subject, method, images, [tap])
        if not torch.allclose(alone, first, rtol=1e-4, atol=1e-5):
            apart = (alone - first).abs().max()
            raise Broken(
                f"features at {tap} asked for alone differ from those asked for with other taps, by up to {apart:.3g}",
                "key what is random at a tap by the tap (rng.at), and let no tap change what the next one reads",
            )
    return ", ".join(f"{tap} {values.shape[1]}" for tap, values in zip(taps, together, strict=True))


def _read(subject: Subject, method: Method, images: Tensor, taps: list[Tap], dense: bool = False) -> list[Tensor]:
    found = method.features(images, taps, subject.rng, **({"dense": True} if dense else {}))
    if isinstance(found, Tensor):
        raise Broken(
            f"`features` gives one tensor, {list(found.shape)}, and no list", "return a list with one for each tap"
        )
    if len(found) != len(taps):
        raise Broken(
            f"`features` gives {len(found)} tensors for {len(taps)} taps", "return one for each tap, in their order"
        )
    return found


def _shaped(tap: Tap, values: Tensor, n: int) -> None:
    if values.ndim != 2 or len(values) != n:
        raise Broken(
            f"features of {n} images at {tap} have the shape {list(values.shape)}",
            "return [B, D] for each tap; maps [B, D, H, W] only with dense=True",
        )
    if not values.isfinite().all():
        raise Broken(
            f"features at {tap} are not finite", "look for a division by zero or an overflow on the way to that tap"
        )


def features_differ(subject: Subject) -> str:
    """Once trained a little, no tap gives the same for all images."""
    method = subject.build()
    subject.steps(method, subject.batch(method, 32), 4, lr=1e-3)
    method.eval()
    with torch.no_grad():
        read = _read(subject, method, subject.images(), method.taps())
    dead = [tap for tap, values in zip(method.taps(), read, strict=True) if values.std(dim=0).max() == 0]
    if dead:
        raise Broken(
            f"after three steps the features at {listed(dead)} are the same for every image",
            "read them from a place that the image reaches",
        )
    return "at every tap"


def features_gradient(subject: Subject) -> str:
    """The gradient of the features at the first tap reaches all that they rest on, but for a VAE: to be fine-tuned."""
    method = subject.build().eval()
    frozen = prepared(method)
    images, tap = subject.images(4), method.taps()[0]
    (values,) = _read(subject, method, images, [tap])
    change = "leave out no_grad and detach in `features`: a caller that wants no gradient says so"
    if not values.requires_grad:
        raise Broken(f"features at {tap} carry no gradient, so that nothing can be fine-tuned", change)
    (values * subject.rng.normal("weights", values.shape)).sum().backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None}
    read = flops.Reads()
    with read, torch.no_grad():
        method.features(images, [tap], subject.rng)
    rested_on = {
        name
        for name, p in method.named_parameters()
        if p.requires_grad and p.untyped_storage().data_ptr() in read.storages and id(p) not in frozen
    }
    if missed := sorted(rested_on - reached):
        raise Broken(f"features at {tap} rest on {listed(missed)}, which their gradient does not reach", change)
    if more := sorted(reached - rested_on):
        raise Broken(
            f"the gradient of the features at {tap} reaches {listed(more)}, on which they do not rest",
            "freeze what is prepared or borrowed: run it without gradient",
        )
    bad = [name for name, p in method.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if bad:
        raise Broken(f"the gradient of features at {tap} is not finite in {listed(bad)}", "look for a root of nothing")
    return f"{len(reached)} tensors under {tap}"


def dense(subject: Subject) -> str:
    """Every tap that is no class token gives maps, for segmentation and detection."""
    method = subject.build().eval()
    taps = [tap for tap in method.taps() if tap in method.maps()]
    if not taps:
        raise NotApplicable("none of its taps is among `maps()`")
    sides = set()
    for tap in taps:
        with torch.no_grad():
            (maps,) = _read(subject, method, subject.images(4), [tap], dense=True)
        if maps.ndim != 4 or maps.shape[0] != 4 or maps.shape[2] != maps.shape[3] or maps.shape[2] < 2:
            raise Broken(
                f"with dense=True the features of 4 images at {tap} have the shape {list(maps.shape)}",
                "return [B, D, H, W] with H = W > 1 for every tap of `maps`, or leave the tap out of `maps`",
            )
        sides.add(maps.shape[2])
    return f"{len(taps)} taps, {' and '.join(map(str, sorted(sides)))} a side"
