"""The sizes that methods share, so that a comparison at one size compares methods and not networks."""

from __future__ import annotations

from typing import NamedTuple


class Trunk(NamedTuple):
    """A transformer's measures."""

    width: int
    depth: int
    heads: int


TRUNKS = {
    "nano": Trunk(96, 4, 3),  # ours: what two CPU cores can train in minutes
    "ti": Trunk(192, 12, 3),
    "s": Trunk(384, 12, 6),
    "b": Trunk(768, 12, 12),
    "l": Trunk(1024, 24, 16),
    "xl": Trunk(1152, 28, 16),  # DiT-XL
}

# Tokens along one side that the papers' settings come to (224 px in patches of 16, 64 px in patches of 4); the two
# small sizes take half of that, a quarter of the tokens, to be trainable without a GPU.
TOKENS_ACROSS = {"nano": 8, "ti": 8, "s": 16, "b": 16, "l": 16, "xl": 16}


def patch_size(image_size: int, tokens_across: int) -> int:
    """The power of two that divides `image_size` into about `tokens_across` patches a side, at least 2.

    8 px at 8 across gives 2 (16 tokens); 28 gives 4 (49); 32 gives 4 (64); 224 at 16 across gives 16 (196).
    """
    powers = [p for p in (2, 4, 8, 16, 32) if image_size % p == 0]
    if not powers:
        raise ValueError(f"an image of {image_size} px cannot be cut into patches of 2, 4, 8, 16 or 32 px")
    return min(powers, key=lambda p: (abs(image_size / p - tokens_across), p))
