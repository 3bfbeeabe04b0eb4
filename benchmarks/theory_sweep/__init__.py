"""Every bound against exact evaluation on a grid of problems: families of densities x classifier errors x T.

Densities are constant on cells, so that every integral is a sum. A `Tally` keeps, for each bound, the number of cases and the
worst ratio: measured over bound for upper bounds, bound over measured for lower bounds; at most 1 where the bound holds.
"""

from __future__ import annotations

from benchmarks.theory_sweep.densities import sweep_densities
from benchmarks.theory_sweep.families import check_low_density, check_minimax, check_spike_family
from benchmarks.theory_sweep.problems import SweepGrid
from benchmarks.theory_sweep.samples import sweep_samples
from benchmarks.theory_sweep.sequences import sweep_sequences
from benchmarks.theory_sweep.tally import TOLERANCE, Check, Tally

__all__ = ["TOLERANCE", "Check", "SweepGrid", "Tally", "sweep"]


def sweep(grid: SweepGrid | None = None, *, sources: int = 8, repeats: int = 100) -> Tally:
    """Every check.

    Args:
        grid: problems with densities; the full grid by default.
        sources: random token sources.
        repeats: samples for each setting of Theorem 5.
    """
    grid = grid or SweepGrid()
    tally = Tally()
    sweep_densities(tally, grid)
    check_spike_family(tally)
    check_minimax(tally)
    check_low_density(tally)
    sweep_samples(tally, repeats, grid.seed)
    sweep_sequences(tally, grid.temperatures, sources, grid.seed)
    return tally
