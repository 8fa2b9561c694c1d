"""The exponential moving average of a detector's weights: what is evaluated where it is on."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

WARM_UP = 10
"""Early averages forget faster: the decay is at most (1 + step) / (WARM_UP + step)"""


class WeightAverage:
    """A copy of the detector whose trained weights follow by `decay`, and whose buffers are copied.

    detector   the one that is trained, not wrapped, its weights in place
    decay      share that the average keeps at a step, in (0, 1)

    Each process of a run has its own, and all have the same bits, as the weights they follow.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; the warm-up is that of
    TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, detector: nn.Module, *, decay: float) -> None:
        self.detector = deepcopy(detector).requires_grad_(False).eval()
        self._decay = decay
        pairs = list(zip(self.detector.parameters(), detector.parameters(), strict=True))
        self._weights: list[Tensor] = [own for own, source in pairs if source.requires_grad]
        self._sources: list[Tensor] = [source for _, source in pairs if source.requires_grad]
        self._buffers = list(zip(self.detector.buffers(), detector.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After an optimiser step; `step` counts those before it."""
        decay = min(self._decay, (1 + step) / (WARM_UP + step))
        torch._foreach_lerp_(self._weights, self._sources, 1 - decay)
        for own, source in self._buffers:
            own.copy_(source)

    def state(self) -> dict[str, Tensor]:
        return self.detector.state_dict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """`state` has been checked to fit the detector; an empty one, of a run without average, changes nothing."""
        if state:
            self.detector.load_state_dict(state)
