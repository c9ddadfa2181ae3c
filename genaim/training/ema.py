"""Exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genaim.training.checkpoint import placed_like


class EMA:
    """Averages of all trained parameters of a module; other parameters and buffers are used as they are.

    The decay of step t is ``min(decay, (1 + t) / (10 + t))``, so that early averages forget the start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Starts at the present weights."""
        self.decay = decay
        self.averages = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the averages towards the weights after step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = dict(module.named_parameters())
        names = list(self.averages)
        torch._foreach_lerp_([self.averages[n] for n in names], [weights[n].detach() for n in names], 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Puts the averages into the module for a while."""
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchanges averages and weights."""
        weights = dict(module.named_parameters())
        for name, average in self.averages.items():
            weight = weights[name].detach().clone()
            weights[name].copy_(average)
            average.copy_(weight)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self.averages)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes averages over, for the same parameters.

        Raises:
            ValueError: If the names differ.
        """
        if state.keys() != self.averages.keys():
            raise ValueError(f"EMA weights do not fit: {sorted(state.keys() ^ self.averages.keys())[:5]} differ.")
        for name, average in state.items():
            self.averages[name] = placed_like(average, self.averages[name])
