"""A toy that keeps every promise, and toys that each break one."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data.arrays import digits_file
from harness.data.dataset import load
from harness.method import Batch, DataSpec, Loss, Method, Optim, Tap, inherit
from harness.rng import Rng

CARD = {
    "title": "Sound", "paper": "None", "year": 2024, "arxiv": "", "idea": "Denoise.", "space": "pixels",
    "sampling": "not from the paper", "notes": [],
    "capabilities": {"features": True, "sample": True, "labels": True},
    "cost": {"nano": {"parameters": 884, "forward_flop": 1_769_472, "features_flop": 884_736}},
    "departures": [{"what": "Narrow.", "why": "Fast; sound.width=24 is wider."}],
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    width: int = 16


class Sound(Method):
    Config = Config
    sizes = ("nano", "ti")

    @classmethod
    def recipe(cls, size: str, data: DataSpec) -> Config:
        return Config({"nano": 16, "ti": 32}[size])

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.first = nn.Conv2d(data.channels, config.width, 3, padding=1)
        self.last = nn.Conv2d(config.width, data.channels, 3, padding=1)

    def hidden(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.gelu(self.first(images))

    def pretrain(self, batch: Batch, progress: float, rng: Rng) -> Loss:
        noisy = batch.images + 0.1 * rng.normal("noise", batch.images.shape)
        loss = F.mse_loss(self.last(self.hidden(noisy, batch.labels)), batch.images)
        return Loss(loss, {"mse": loss.detach()})

    def optim(self, batch_size: int) -> Optim:
        return Optim(1e-2)

    def taps(self) -> list[Tap]:
        return [Tap("hidden")]

    def features(self, images: Tensor, taps: Sequence[Tap], rng: Rng, dense: bool = False) -> list[Tensor]:
        maps = self.hidden(images)
        return [maps if dense else maps.mean(dim=(2, 3)) for _ in taps]

    def sample(self, n: int, rng: Rng, labels=None, steps=None, guidance: float = 1.0) -> Tensor:
        start = rng.normal("start", (n, self.data.channels, self.data.size, self.data.size))
        plain = self.last(self.hidden(start))
        told = plain if labels is None else self.last(self.hidden(start, labels))
        return (plain + guidance * (told - plain)).tanh()

    def labelled(self) -> Method:
        return inherit(Labelled(self.config, self.data), self)


class Labelled(Sound):
    sees_labels = True

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        self.classes = nn.Embedding(data.classes, config.width)

    def hidden(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        hidden = super().hidden(images)
        return hidden if labels is None else hidden + self.classes(labels)[:, :, None, None]


# -- each breaks one promise ------------------------------------------------------------------------------------------


class OneSize(Sound):
    @classmethod
    def recipe(cls, size, data):
        return Config()


class LooksAtItsWeights(Sound):
    def __init__(self, config, data):
        super().__init__(config, data)
        self.scale = float(self.first.weight.std())


class Frozen(Sound):
    def __init__(self, config, data):
        super().__init__(config, data)
        self.teacher = nn.Linear(100, 100).requires_grad_(False)


class OnlyGrey(Sound):
    def pretrain(self, batch, progress, rng):
        if batch.images.shape[1] > 1:
            raise ValueError("one channel, please")
        return super().pretrain(batch, progress, rng)


class ReadsNumbers(Sound):
    """Not broken, but of a cost that no count without numbers can tell."""

    def pretrain(self, batch, progress, rng):
        loss = super().pretrain(batch, progress, rng)
        return Loss(loss.total, {"mse": torch.tensor(loss.total.item())})


class OwnSeed(Sound):
    def __init__(self, config, data):
        super().__init__(config, data)
        generator = torch.Generator()
        generator.seed()
        if not self.first.weight.is_meta:
            nn.init.normal_(self.first.weight, std=0.1, generator=generator)


class Baggage(Sound):
    def get_extra_state(self):
        return {"seen": {1, 2}}

    def set_extra_state(self, state):
        pass


class Forgets(Sound):
    def load_state_dict(self, state, *words, **options):
        return super().load_state_dict({n: t for n, t in state.items() if n != "last.bias"}, strict=False)


class Stuck(Sound):
    def pretrain(self, batch, progress, rng):
        loss = super().pretrain(batch, progress, rng).total
        return Loss(loss - loss.detach() + 1, {})


class Explodes(Sound):
    def pretrain(self, batch, progress, rng):
        return Loss(super().pretrain(batch, progress, rng).total / (progress - 0.5), {})


class Unwritten(Sound):
    def pretrain(self, batch, progress, rng):
        raise NotImplementedError("later")


class Bare(Sound):
    def pretrain(self, batch, progress, rng):
        return super().pretrain(batch, progress, rng).total


class Rows(Sound):
    def pretrain(self, batch, progress, rng):
        return Loss(self.first(batch.images).square().mean(dim=(1, 2, 3)), {})


class Idle(Sound):
    def __init__(self, config, data):
        super().__init__(config, data)
        self.spare = nn.Linear(3, 3)


class LeftOut(Sound):
    def param_groups(self):
        return [{"params": list(self.first.parameters())}]


class Twice(Sound):
    def param_groups(self):
        return [*super().param_groups(), {"params": [self.last.bias]}]


class Pairs(Sound):
    def pretrain(self, batch, progress, rng):
        one, _ = batch.images.chunk(2)
        return super().pretrain(Batch(one), progress, rng)


class Deviates(Sound):
    def pretrain(self, batch, progress, rng):
        loss = super().pretrain(batch, progress, rng).total
        return Loss(loss + batch.images.sub(batch.images.mean(dim=0)).square().sum() / (len(batch.images) - 1), {})


class OneLight(Sound):
    """All images of a batch are made darker alike, which two processes would not do."""

    def pretrain(self, batch, progress, rng):
        return super().pretrain(Batch(batch.images * rng.uniform("light", (1, 1, 1))), progress, rng)


class OneTensor(Sound):
    def features(self, images, taps, rng, dense=False):
        return super().features(images, taps, rng, dense)[0]


class Noisy(Sound):
    def features(self, images, taps, rng, dense=False):
        return [f + 0.1 * torch.randn(f.shape) for f in super().features(images, taps, rng, dense)]


class Maps(Sound):
    def features(self, images, taps, rng, dense=False):
        return super().features(images, taps, rng, dense=True)


class Crowd(Sound):
    def taps(self):
        return [Tap("hidden"), Tap("again")]

    def features(self, images, taps, rng, dense=False):
        return [f * len(taps) for f in super().features(images, taps, rng, dense)]


class Blind(Sound):
    def features(self, images, taps, rng, dense=False):
        return super().features(images * 0, taps, rng, dense)


class Detached(Sound):
    @torch.no_grad()
    def features(self, images, taps, rng, dense=False):
        return super().features(images, taps, rng, dense)


class Flat(Sound):
    def features(self, images, taps, rng, dense=False):
        return super().features(images, taps, rng)


class Bright(Sound):
    def sample(self, n, rng, labels=None, steps=None, guidance=1.0):
        return 3 * super().sample(n, rng, labels, steps, guidance) + 1


class Unkeyed(Sound):
    def sample(self, n, rng, labels=None, steps=None, guidance=1.0):
        return super().sample(n, Rng(0), labels, steps, guidance)


class Moody(Sound):
    def sample(self, n, rng, labels=None, steps=None, guidance=1.0):
        return super().sample(n, Rng(random.SystemRandom().randrange(2**40)), labels, steps, guidance)


class Repeats(Sound):
    def sample(self, n, rng, labels=None, steps=None, guidance=1.0):
        return super().sample(1, rng, labels, steps, guidance).expand(n, -1, -1, -1)


class Hushed(Sound):
    def labelled(self):
        return inherit(Sound(self.config, self.data), self)


class Unguided(Sound):
    def labelled(self):
        method = super().labelled()
        method.sample = lambda n, rng, labels=None, steps=None, guidance=1.0: Sound.sample(method, n, rng, labels)
        return method


class DrawsGlobally(Sound):
    def pretrain(self, batch, progress, rng):
        return super().pretrain(Batch(batch.images + 0.1 * torch.randn(batch.images.shape)), progress, rng)


class ReadsWithNumpy(Sound):
    def features(self, images, taps, rng, dense=False):
        return [f + np.random.rand() for f in super().features(images, taps, rng, dense)]


class Counts(Sound):
    def __init__(self, config, data):
        super().__init__(config, data)
        self.seen = 0

    def pretrain(self, batch, progress, rng):
        self.seen += 1
        loss = super().pretrain(batch, progress, rng).total
        return Loss(loss * self.seen, {})


class NeverTheSame(Sound):
    def pretrain(self, batch, progress, rng):
        return super().pretrain(batch, progress, Rng(random.SystemRandom().randrange(2**40)))


class Peeks(Sound):
    def pretrain(self, batch, progress, rng):
        with suppress(OSError):  # told, even where the method does not listen
            load_once().open_test("a method")
        return super().pretrain(batch, progress, rng)


def load_once():
    return _DIGITS


_DIGITS = load("digits")


class ReadsTheFile(Sound):
    def pretrain(self, batch, progress, rng):
        digits_file().read_bytes()
        return super().pretrain(batch, progress, rng)


class Calls(Sound):
    def sample(self, n, rng, labels=None, steps=None, guidance=1.0):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.connect(("192.0.2.1", 80))
        return super().sample(n, rng, labels, steps, guidance)


class Asks(Sound):
    def __init__(self, config, data):
        super().__init__(config, data)
        socket.getaddrinfo("weights.example", 443)


@dataclass(frozen=True)
class Case:
    """A toy, the promise that it breaks, and words of what is said of it."""

    promise: str
    cls: type[Method]
    found: str
    change: str
    card: dict = field(default_factory=dict)  # laid over CARD; None removes

    @property
    def id(self) -> str:
        return f"{self.promise}-{self.cls.__name__}{'-' + ' '.join(self.card) if self.card else ''}"


_ABLE = CARD["capabilities"]
_NANO = CARD["cost"]["nano"]
CASES = (
    Case("card", Sound, "lacks title (str), notes (list)", "card.toml", {"title": None, "notes": "none"}),
    Case("card", Sound, "labels = false, the code has", "labels = true", {"capabilities": _ABLE | {"labels": False}}),
    Case("card", Sound, 'sampling = "none", the code has a `sample`', "whose sampler it is", {"sampling": "none"}),
    Case("card", Sound, 'space = "sound"', '"pixels" or "latents"', {"space": "sound"}),
    Case("card", Sound, "[[published]] number of the card lacks metric", "protocol",
         {"published": [{"model": "", "dataset": "", "value": 1, "protocol": "", "source": ""}]}),
    Case("card", Sound, "[[borrowed]] entry of the card", "`what`", {"borrowed": [{"parameters": 3}]}),
    Case("settings", Sound, "sound.widht=3, which is refused", "typed as it stands",
         {"departures": [{"what": "Narrow.", "why": "sound.widht=3."}]}),
    Case("sizes", OneSize, "of nano, ti on grey 8 px are", "larger than the one before"),
    Case("sizes", LooksAtItsWeights, "size nano cannot be built for grey 8 px", "no number of its tensors"),
    Case("cost", Sound, "parameters 900 k declared, 883 measured", "parameters = 883",
         {"cost": {"nano": _NANO | {"parameters": 900_000}}}),
    Case("cost", Sound, "declares no parameters, forward_flop, features_flop", "nano = { parameters = 883",
         {"cost": {}}),
    Case("cost", OnlyGrey, "ValueError: one channel, please (broken.py:", "let `recipe` choose what fits"),
    Case("cost", Frozen, "10,100 parameters are frozen", "[[borrowed]]"),
    Case("seed", OwnSeed, "differ in first.weight", "global generator, which is seeded"),
    Case("weights-only", Baggage, "_extra_state (dict)", "register_buffer"),
    Case("weights-only", Forgets, "does not bring back last.bias", "load_state_dict"),
    Case("loss", Stuck, "take the loss from 1 to 1", "what is to become small"),
    Case("loss", Explodes, "the loss is inf at step 0 of 40", "a division by zero"),
    Case("loss", Unwritten, "NotImplementedError: later (broken.py:", "on images [B, 1, 8, 8] in"),
    Case("loss", Bare, "`pretrain` of Bare returned Tensor", "harness.method.Loss"),
    Case("loss", Rows, "`pretrain` of Rows returned a total of shape [64]", "without dimensions"),
    Case("gradients", Idle, "no gradient reaches spare.weight, spare.bias", "requires_grad"),
    Case("groups", LeftOut, "last.weight", "every trained parameter in one group"),
    Case("groups", Twice, "last.bias is in more than one", "every trained parameter in one group"),
    Case("odd-batches", Pairs, "`pretrain` fails on a batch of 1: ValueError", "any number of images"),
    Case("odd-batches", Deviates, "the loss of a batch of 1 is nan", "a floor"),
    Case("shared", OneLight, "a draw of shape (1, 1, 1) in a step whose batch is shared by 2 processes (broken.py:",
         "a row for each image"),
    Case("features", OneTensor, "`features` gives one tensor, [16, 16], and no list", "one for each tap"),
    Case("features", Noisy, "features at hidden differ between two equal calls", "the rng it is given"),
    Case("features", Maps, "have the shape [16, 16, 8, 8]", "return [B, D]"),
    Case("features", Crowd, "asked for alone differ", "let no tap change"),
    Case("features-differ", Blind, "at hidden are the same for every image", "the image reaches"),
    Case("features-gradient", Detached, "at hidden carry no gradient", "leave out no_grad"),
    Case("dense", Flat, "at hidden have the shape [4, 16]", "return [B, D, H, W]"),
    Case("samples", Bright, "samples lie in [-", "clamp them to [-1, 1]"),
    Case("samples", Unkeyed, "samples with another key are the same", "from the rng it is given"),
    Case("samples", Moody, "two samples with one key differ", "from the rng it is given"),
    Case("samples", Repeats, "of one call are all the same", "shapes [n, ...]"),
    Case("labels", Hushed, "sees_labels = False", "set it to True"),
    Case("labels", Unguided, "guidance 1.5 draws what guidance 1 draws", "from no label to the label"),
    Case("global-rng", DrawsGlobally, "`pretrain` draws from torch's global generator (broken.py:", "rng.normal"),
    Case("global-rng", ReadsWithNumpy, "`features` draws from numpy's global random (broken.py:", "rng.normal"),
    Case("resume", Counts, "in no checkpoint: Counts.seen: 0 became 15", "register_buffer"),
    Case("resume", NeverTheSame, "two undisturbed runs of one seed", "the rng that `pretrain` is given"),
    Case("test-split", Peeks, "asked for the test part of digits (broken.py:", "load no data set"),
    Case("test-split", ReadsTheFile, "the file digits.csv.gz of the data set (broken.py:", "load no data set"),
    Case("network", Calls, "the network for a connection to 192.0.2.1 (broken.py:", "nothing downloads"),
    Case("network", Asks, "the network for the address of weights.example (broken.py:", "nothing downloads"),
)  # fmt: skip


def card_of(case: Case) -> dict:
    return {key: value for key, value in (CARD | case.card).items() if value is not None}
