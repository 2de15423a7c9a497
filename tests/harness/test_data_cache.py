import errno

import numpy as np
import pytest

from harness.data import cache
from harness.errors import HarnessError

SHAPE = (12, 3, 4, 4)
PIXELS = np.arange(np.prod(SHAPE), dtype=np.uint32).astype(np.uint8).reshape(SHAPE)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MIN_BYTES", 0)
    return tmp_path / "cache/decoded"


class Source:
    """Yields PIXELS in three pieces and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self):
        self.asked += 1
        yield from np.split(PIXELS, 3)


def test_decoded_once_then_read(folder):
    source = Source()
    results = [cache.pixels("k", SHAPE, source) for _ in range(3)]
    assert source.asked == 1
    for array, digest in results:
        assert np.array_equal(array, PIXELS) and digest == results[0][1]
    (file,) = folder.iterdir()
    assert file.name == f"k.{results[0][1]}.npy"
    assert cache.pixels("other", SHAPE, source)[1] == results[0][1] and source.asked == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:-5] + bytes(5), lambda b: b""])
def test_a_damaged_file_is_made_again(folder, damage):
    source = Source()
    cache.pixels("k", SHAPE, source)
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(cache.pixels("k", SHAPE, source)[0], PIXELS)
    assert source.asked == 2 and len(list(folder.iterdir())) == 1


def test_large_arrays_are_mapped_and_writes_do_not_reach_the_file(folder, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 0)
    array, digest = cache.pixels("k", SHAPE, Source())
    assert isinstance(array, np.memmap)
    array[0] = 0
    again, same = cache.pixels("k", SHAPE, Source())
    assert np.array_equal(again, PIXELS) and same == digest


def test_without_a_writable_folder_nothing_is_cached_and_nothing_fails(folder, monkeypatch, caplog):
    folder.parent.write_text("a file in the way")
    source = Source()
    with caplog.at_level("INFO"):
        array, digest = cache.pixels("k", SHAPE, source)
    assert np.array_equal(array, PIXELS) and "not cached" in caplog.text
    assert digest == cache.pixels("k", SHAPE, source)[1] and source.asked == 2


def test_a_full_disk_leaves_no_part_behind(folder, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    assert np.array_equal(cache.pixels("k", SHAPE, Source())[0], PIXELS)
    assert list(folder.iterdir()) == []


def test_an_error_while_decoding_leaves_no_part_behind(folder):
    def corrupt():
        yield PIXELS[:4]
        raise HarnessError("image 5 cannot be decoded")

    with pytest.raises(HarnessError, match="image 5"):
        cache.pixels("k", SHAPE, corrupt)
    assert list(folder.iterdir()) == []


def test_more_than_memory_needs_the_cache(folder, monkeypatch):
    folder.parent.write_text("a file in the way")
    with pytest.raises(HarnessError, match="more than this machine's memory"):
        cache.pixels("k", (1 << 50,), lambda: iter(()))
