"""Ratios of what was measured to what was bounded, kept by the name of the bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TOLERANCE = 1e-7  # relative, for rounding in ratios of nearly equal numbers


@dataclass
class Check:
    """One bound over a sweep: cases, worst and median ratio (at most 1 where it holds), and the case of the worst."""

    name: str
    ratios: list[float] = field(default_factory=list)
    worst_case: dict[str, Any] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return max(self.ratios)

    @property
    def violations(self) -> int:
        """Ratios above `1 + TOLERANCE`."""
        return sum(ratio > 1 + TOLERANCE for ratio in self.ratios)

    def summary(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "cases": len(self.ratios),
            "violations": self.violations,
            "worst_ratio": self.worst,
            "median_ratio": float(np.median(self.ratios)),
            "worst_case": self.worst_case,
        }


class Tally(dict[str, Check]):
    """Checks by name."""

    def at_most(self, name: str, measured: float, bound: float, floor: float = 1e-14, **case: Any) -> None:
        """Record `measured <= bound`; `floor` is the rounding error of `measured`, which the ratio leaves out."""
        check = self.setdefault(name, Check(name))
        if math.isnan(measured) or math.isnan(bound):
            ratio = math.inf
        elif measured <= floor or math.isinf(bound):
            ratio = 0.0
        else:
            ratio = (measured - floor) / bound if bound > 0 else math.inf
        if not check.ratios or ratio > check.worst:
            check.worst_case = case
        check.ratios.append(float(ratio))

    def at_least(self, name: str, measured: float, bound: float, floor: float = 1e-14, **case: Any) -> None:
        """Record `measured >= bound`."""
        self.at_most(name, bound, measured + floor, floor=0.0, **case)
