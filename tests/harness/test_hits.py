"""Which test images were guessed right: a record's bits, and what becomes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness import hits
from harness.errors import HarnessError


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
def test_bits_come_back_whatever_their_number(n):
    right = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
    assert np.array_equal(hits.share(hits.packed([right]), n), right.numpy().astype(float))


def test_of_several_repeats_each_image_has_its_share():
    rows = [torch.tensor([1, 1, 0]).bool(), torch.tensor([1, 0, 0]).bool()]
    assert hits.share(hits.packed(rows), 3).tolist() == [1.0, 0.5, 0.0]


def test_ten_thousand_images_take_less_than_two_kilobytes_of_a_record():
    assert len(hits.packed([torch.zeros(10_000).bool()])) < 1700


@pytest.mark.parametrize("text", ["", "A", "!!!!", "AAAA"])
def test_bits_of_another_number_of_images_are_refused(text):
    with pytest.raises(HarnessError, match="a bit for each test image"):
        hits.share(text, 9)
