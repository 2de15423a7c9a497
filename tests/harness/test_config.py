"""Settings: words and tables become checked fields of frozen dataclasses, and mistakes are named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from harness.config import override, parse_words, plain
from harness.errors import HarnessError


@dataclass(frozen=True)
class Inner:
    depth: int = 2
    heads: int = 3


@dataclass(frozen=True)
class Config:
    mask_ratio: float = 0.75
    width: int = 64
    crop: tuple[float, float] = (0.8, 1.0)
    shares: tuple[float, ...] = (0.5,)
    schedule: Literal["cosine", "linear"] = "cosine"
    clip: float | None = 1.0
    name: str = ""
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError("the mask ratio lies between 0 and 1")


def test_values_are_laid_over_the_defaults_and_checked() -> None:
    values = {"mask_ratio": 0.6, "crop": [0.2, 1], "shares": [0.1, 0.2, 0.3], "clip": None, "schedule": "linear"}
    config = override(Config(), values)
    assert config == Config(0.6, crop=(0.2, 1.0), shares=(0.1, 0.2, 0.3), clip=None, schedule="linear")
    assert isinstance(config.crop, tuple)
    assert override(Config(), {"crop": "0.5,1"}).crop == (0.5, 1.0)
    assert override(Config(), {"shares": "0.25"}).shares == (0.25,)
    assert override(Config(inner=Inner(4, 4)), {"inner": {"depth": 5}}).inner == Inner(5, 4), "the rest stays"
    with pytest.raises(HarnessError, match=r"unknown setting 'umd.inner.dept'[\s\S]*did you mean 'umd.inner.depth'"):
        override(Config(), {"inner": {"dept": 5}}, "umd")
    assert override(config, {}) is config


def test_an_unknown_key_suggests_the_nearest_with_its_section() -> None:
    with pytest.raises(HarnessError, match=r"unknown setting 'umd.mask_ration'[\s\S]*did you mean 'umd.mask_ratio'"):
        override(Config(), {"mask_ration": 0.5}, "umd")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", "wide"),
        ("width", 1.5),
        ("width", None),
        ("crop", 0.5),
        ("crop", [0.5]),
        ("shares", "half"),
        ("schedule", "cosin"),
        ("clip", "much"),
        ("inner", 3),
    ],
)
def test_a_wrong_type_names_the_key_the_value_and_the_default(key: str, value: object) -> None:
    with pytest.raises(HarnessError) as caught:
        override(Config(), {key: value}, "umd")
    assert f"umd.{key}={value!r} does not fit" in caught.value.found
    assert repr(getattr(Config(), key)) in caught.value.expected


def test_the_choices_of_a_field_are_listed() -> None:
    with pytest.raises(HarnessError, match="'cosine' or 'linear'"):
        override(Config(), {"schedule": "cosin"})


@pytest.mark.parametrize(("prefix", "label"), [("umd", "umd.mask_ratio=1.5: "), ("", "mask_ratio=1.5: ")])
def test_a_value_out_of_range_is_an_error_for_the_user(prefix: str, label: str) -> None:
    with pytest.raises(HarnessError) as caught:
        override(Config(), {"mask_ratio": 1.5}, prefix)
    assert caught.value.found == f"{label}the mask ratio lies between 0 and 1"


def test_words_become_nested_tables_with_json_values() -> None:
    words = ["seeds=3", "umd.mask_ratio=0.6", "umd.crop=[0.2, 1]", "train.compile=true", "name=a=b", "a.b.c=null"]
    assert parse_words(words) == {
        "seeds": 3,
        "umd": {"mask_ratio": 0.6, "crop": [0.2, 1]},
        "train": {"compile": True},
        "name": "a=b",
        "a": {"b": {"c": None}},
    }
    assert parse_words(["methods=umd,mae", "x=", 'y="3"', "z=1min"]) == {
        "methods": "umd,mae", "x": "", "y": "3", "z": "1min"
    }  # fmt: skip


@pytest.mark.parametrize("word", ["umd", "=3", "umd.mask_ratio:0.6"])
def test_a_word_without_key_or_value_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(HarnessError, match="cannot read") as caught:
        parse_words([word])
    assert "train.batch_size=256" in caught.value.next_step


def test_a_part_of_what_was_set_as_a_whole_is_a_conflict() -> None:
    with pytest.raises(HarnessError, match=r"'train.compile=true' sets a part of 'train'"):
        parse_words(["train=3", "train.compile=true"])


def test_plain_values_survive_json_and_build_the_config_again() -> None:
    config = Config(0.5, crop=(0.1, 0.2), inner=Inner(7))
    values = plain(config)
    assert values["crop"] == [0.1, 0.2]
    assert list(values)[:2] == ["mask_ratio", "width"]
    assert override(Config(), values) == config
