"""DifFormer: what a diffusion U-Net knows at several blocks and noise levels, put together by attention.

Mukhopadhyay et al., "Do text-free diffusion models learn discriminative visual representations?", ECCV 2024, arXiv
2311.17921; see methods/difformer/README.md. The network is DDAE's, pre-trained once for both: nothing is trained here
but the head (backbones/heads.py), with labels, and that is evaluation (evals/attentive.py). Measured: the head's top-1;
linear probe and samples are DDAE's. Borrows nothing.
"""

from __future__ import annotations

from harness.method import Tap
from methods.ddae.method import Ddae


class DifFormer(Ddae):
    pretrained_as = "ddae"

    def maps(self) -> list[Tap]:
        """DDAE's, and what the head reads: the middle (`out_0`) and levels that DDAE's probe does not try."""
        return list(dict.fromkeys([*super().maps(), *(tap for level in self.fusion() for tap in level)]))

    def fusion(self) -> list[list[Tap]]:
        return [[Tap(f"out_{k}", noise) for k in self.fused_blocks()] for noise in self.fused_noises()]

    def fused_noises(self) -> tuple[int, ...]:
        """0.6, 1 and 2 times the backbone's best, as ADM's 90, 150 and 300 are; EDM's grid has such ratios itself."""
        usual = self.usual_noise()
        if self.config.objective == "edm":
            return (max(1, usual - 1), usual, min(usual + 1, self.config.edm.levels))
        return (max(1, round(0.6 * usual)), usual, min(2 * usual, 999))

    def fused_blocks(self) -> list[int]:
        """The middle, the backbone's best, and the second block of the next level (ADM: of the one after that)."""
        net, best = self.config.net, self.usual_block()
        a_level = net.blocks + 1
        level = (best - 1) // a_level + (2 if self.config.layout == "adm" else 1)
        finer = min(level, len(net.mults) - 1) * a_level + 2
        return sorted({0, best, finer})


METHOD = DifFormer
