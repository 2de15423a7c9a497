"""Features in files: a killed extraction goes on where it was, and what is damaged is read again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.evaluation.features import CHUNK
from harness.method import Tap
from tests.evals.kit import Toy, context, toy_data

TAP = Tap("rich", 5)


class Killed(Toy):
    """Gives up at its third pass."""

    def features(self, images, taps, rng, dense=False):
        if len(self.passes) == 2:
            raise KeyboardInterrupt
        return super().features(images, taps, rng, dense)


@pytest.fixture(scope="module")
def data():
    return toy_data(fit=4 * CHUNK + 10)


def test_a_killed_extraction_goes_on_where_it_was(tmp_path, data):
    with pytest.raises(KeyboardInterrupt):
        context(tmp_path, Killed(), data, kept=tmp_path / "kept").features([TAP], "fit")
    method = Toy()
    found = context(tmp_path, method, data, kept=tmp_path / "kept").features([TAP], "fit")[TAP]
    assert len(method.passes) == 3  # of five chunks
    assert torch.equal(found, context(tmp_path, Toy(), data).features([TAP], "fit")[TAP])


def test_a_damaged_chunk_is_extracted_again(tmp_path, data):
    first = context(tmp_path, Toy(), data, kept=tmp_path / "kept").features([TAP], "fit")[TAP]
    (file,) = (tmp_path / "kept").rglob("*.npy")
    rows = np.load(file, mmap_mode="r+")
    rows[CHUNK + 3] += 1
    rows.flush()
    method = Toy()
    again = context(tmp_path, method, data, kept=tmp_path / "kept").features([TAP], "fit")[TAP]
    assert len(method.passes) == 1 and torch.equal(first, again)


def test_files_can_be_read_by_numpy(tmp_path, data):
    where = context(tmp_path, Toy(), data, kept=tmp_path / "kept")
    found = where.features([TAP], "fit")[TAP]
    (file,) = (tmp_path / "kept").rglob("*.npy")
    assert file.name == "rich@5.npy"
    assert np.array_equal(np.load(file, mmap_mode="r"), found.numpy())


def test_a_prefix_costs_its_chunks_only_and_is_the_prefix_of_the_whole(tmp_path, data):
    method = Toy()
    where = context(tmp_path, method, data, kept=tmp_path / "kept")
    first = where.features([TAP], "fit", CHUNK + 1)[TAP]
    assert len(method.passes) == 2
    assert torch.equal(first, where.features([TAP], "fit")[TAP][: CHUNK + 1])
    assert len(method.passes) == 5


def test_repeats_read_other_noise_and_keep_it_apart(tmp_path, data):
    where = context(tmp_path, Toy(), data, kept=tmp_path / "kept")
    one, two = (repeat.features([TAP], "fit")[TAP] for repeat in where.repeats(2, [TAP]))
    assert not torch.equal(one, two)
    assert where.repeats(3, [Tap("rich")]) == [where]  # nothing in a clean tap is random
    assert where.repeat(1) is where.repeat(1)
