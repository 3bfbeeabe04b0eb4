"""Sampling the tempered, tilted density in the plane, side by side with the truth.

Particles are drawn from the base model and moved to `p^(1/T) f` by annealed importance sampling with resampling (sequential
Monte Carlo) along `p^(1 - u (1 - 1/T)) f^u`, u from 0 to 1, with random-walk Metropolis steps of several lengths. Several
independent populations ("islands") give the standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_expit, logsumexp

from tempertilt.errors import MissingExtraError
from tempertilt.theory.checks import Array
from tempertilt.theory.classifier import correct_prior_shift
from tempertilt.theory.distributions import GaussianMixture
from tempertilt.theory.experiments import style
from tempertilt.theory.experiments.result import Result, Table, show

GAMMA, SPIKE, SCALE = 0.15, (0.7, 0.4), 0.02
SAMPLES, PARTICLES, ISLANDS, STEPS, MOVES = 60, 2000, 8, 20, 4
LENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
TEMPERATURES = (1.0, 2.0)
REACH = 0.15  # radius that counts as the spike: the forget distribution leaves 6e-13 of its mass outside

Log = Callable[[Array], Array]


class Distributions(NamedTuple):
    """Retain, forget and base distribution."""

    retain: GaussianMixture
    forget: GaussianMixture
    base: GaussianMixture

    @classmethod
    def make(cls) -> Distributions:
        """Five Gaussians on a circle, and a spike inside it."""
        turn = 2 * math.pi * np.arange(5) / 5 + math.pi / 2
        means = 3 * np.stack([np.cos(turn), np.sin(turn)], -1)
        retain = GaussianMixture(means, np.full(5, 0.5), np.full(5, 0.2))
        forget = GaussianMixture(np.array([SPIKE]), np.array([SCALE]), np.ones(1))
        base = GaussianMixture(
            np.vstack([retain.means, forget.means]),
            np.append(retain.scales, SCALE),
            np.append((1 - GAMMA) * retain.shares, GAMMA),
        )
        return cls(retain, forget, base)


def learn(distributions: Distributions, rng: np.random.Generator) -> Log:
    """Logistic regression on 25 wide bumps from a few samples of each class: `log f` at true prior, as a function of points."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "theory", "learning the classifier of this experiment") from error
    side = np.linspace(-3, 3, 5)
    centres = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)

    def bumps(at: Array) -> Array:
        return np.asarray(np.exp(-((at[..., None, :] - centres) ** 2).sum(-1) / (2 * 1.2**2)))

    x = np.vstack([distributions.retain.sample(SAMPLES, rng), distributions.forget.sample(SAMPLES, rng)])
    model = LogisticRegression(C=1.0, max_iter=500).fit(bumps(x), np.repeat([1, 0], SAMPLES))

    def log_f(at: Array) -> Array:
        flat = bumps(at.reshape(-1, 2))
        return np.asarray(log_expit(correct_prior_shift(model.decision_function(flat), GAMMA, 0.5))).reshape(at.shape[:-1])

    return log_f


def smc(distributions: Distributions, log_f: Log, temperature: float, rng: np.random.Generator, particles: int) -> Array:
    """Samples `(particles, 2)` of the distribution proportional to `p^(1/T) f`."""
    beta, x = 1 - 1 / temperature, distributions.base.sample(particles, rng)
    log_p, tilt = distributions.base.log_density(x), log_f(x)
    for step in range(1, STEPS + 1):
        u = step / STEPS
        weights = (tilt - beta * log_p) / STEPS
        weights = np.exp(weights - logsumexp(weights))
        at = np.searchsorted(np.cumsum(weights)[:-1], (np.arange(particles) + rng.random()) / particles)  # systematic
        x, log_p, tilt = x[at], log_p[at], tilt[at]
        for _ in range(MOVES):
            length = rng.choice(LENGTHS, size=(particles, 1))
            new = x + length * rng.standard_normal(x.shape)
            new_p, new_tilt = distributions.base.log_density(new), log_f(new)
            gain = (1 - u * beta) * (new_p - log_p) + u * (new_tilt - tilt)
            accept = np.log(rng.random(particles)) < gain
            x = np.where(accept[:, None], new, x)
            log_p, tilt = np.where(accept, new_p, log_p), np.where(accept, new_tilt, tilt)
    return x


class Exact(NamedTuple):
    """By quadrature: mass within REACH of the spike, forget error (density unit), retain error (nats)."""

    spike_mass: float
    forget_error: float
    retain_error: float


def quadrature(distributions: Distributions, log_f: Log, temperature: float) -> Exact:
    """Midpoint sums on a fine grid around the spike and a coarser one elsewhere; Gauss-Hermite for the two errors."""

    def midpoints(low: float, high: float, cells: int, centre: tuple[float, float]) -> tuple[Array, float]:
        side = low + (high - low) * (np.arange(cells) + 0.5) / cells
        points = np.stack(np.meshgrid(side + centre[0], side + centre[1]), -1).reshape(-1, 2)
        return points, ((high - low) / cells) ** 2

    def log_raw(at: Array) -> Array:
        return np.asarray(distributions.base.log_density(at) / temperature + log_f(at))

    near, small = midpoints(-2 * REACH, 2 * REACH, 240, SPIKE)
    far, large = midpoints(-7, 7, 280, SPIKE)  # cells of 0.05: the finer square is six of them to each side
    outside = np.abs(far - SPIKE).max(-1) > 2 * REACH
    inside = float(np.exp(log_raw(near)).sum() * small)
    z = inside + float(np.exp(log_raw(far[outside])).sum() * large)
    on = np.linalg.norm(near - SPIKE, axis=-1) < REACH
    mass = float(np.exp(log_raw(near[on])).sum() * small) / z
    forget_at, forget_w = distributions.forget.quadrature(24)
    retain_at, retain_w = distributions.retain.quadrature(24)
    density = np.exp(distributions.retain.log_density(forget_at))
    forget = float(forget_w @ np.abs(np.exp(log_raw(forget_at)) / z - density))
    divergence = float(retain_w @ (distributions.retain.log_density(retain_at) - log_raw(retain_at))) + math.log(z)
    return Exact(mass, forget, divergence)


def run(seed: int = 0) -> Result:
    """One learned classifier; samples with and without tempering."""
    rng, distributions = np.random.default_rng(seed), Distributions.make()
    log_f = learn(distributions, rng)
    n = PARTICLES * ISLANDS
    clouds = {"retain data": distributions.retain.sample(n, rng), "base model": distributions.base.sample(n, rng)}
    exact: dict[str, Exact | None] = {"retain data": None, "base model": None}
    for t in TEMPERATURES:
        name = "plain guidance, T = 1" if t == 1 else f"tempered guidance, T = {t:g}"
        clouds[name] = np.vstack([smc(distributions, log_f, t, rng, PARTICLES) for _ in range(ISLANDS)])
        exact[name] = quadrature(distributions, log_f, t)
    rows: list[list[Any]] = []
    for name, of in exact.items():
        shares = on_spike(clouds[name]).reshape(ISLANDS, PARTICLES).mean(1)
        error = float(shares.std(ddof=1)) / math.sqrt(ISLANDS)
        rows.append([name, len(clouds[name]), float(shares.mean()), error, *(("", "", "") if of is None else of)])
    columns = ("samples of", "n", "share on the spike", "standard error", "by quadrature", "F_T", "R_T (nats)")
    chance = float(np.exp(log_f(np.array(SPIKE))))
    one, two = (exact[name] for name in list(exact)[2:])
    assert one is not None and two is not None
    found = [
        f"The classifier, learned from {SAMPLES} samples of each class, calls the spike retain with probability {chance:.2f}.",
        f"Mass on the spike: {GAMMA:.0%} in the base, {one.spike_mass:.2%} with plain guidance, {two.spike_mass:.3%} with "
        f"T = {TEMPERATURES[1]:g}. Forget error {show(one.forget_error)} and {show(two.forget_error)}, retain error "
        f"{show(one.retain_error)} and {show(two.retain_error)} nats.",
    ]
    settings = {
        "seed": seed,
        "gamma": GAMMA,
        "samples": SAMPLES,
        "particles": PARTICLES,
        "islands": ISLANDS,
        "steps": STEPS,
        "moves": MOVES,
    }
    points: list[list[Any]] = []
    for name, cloud in clouds.items():
        points += [[name, *map(float, point)] for point in cloud[: 2 * PARTICLES]]
    return Result(
        "mixture-2d",
        "Samples from the tempered, tilted density, beside the truth",
        settings,
        found,
        Table(columns, rows),
        Table(("samples of", "x", "y"), points),
        lambda: _draw(clouds),
    )


def on_spike(points: Array) -> Any:
    """Whether points `(n, 2)` lie within REACH of the spike."""
    return np.linalg.norm(points - SPIKE, axis=-1) < REACH


def _draw(clouds: dict[str, Array]) -> Any:
    figure, axes = style.panels(1, 4, (13, 3.7), sharex=True, sharey=True)
    for axis, (name, cloud) in zip(axes[0], clouds.items()):
        share, shown = float(on_spike(cloud).mean()), cloud[: 2 * PARTICLES]
        spike = on_spike(shown)
        axis.scatter(*shown[~spike].T, s=2.5, color=style.BLUE, alpha=0.4, linewidths=0)
        axis.scatter(*shown[spike].T, s=8, color=style.VERMILION, alpha=0.7, linewidths=0)
        axis.add_patch(_circle())
        axis.annotate(
            f"{share:.2%}", (SPIKE[0], SPIKE[1] - 0.42), ha="center", va="top",
            color=style.VERMILION if share else style.MUTED, fontsize=11,
        )  # fmt: skip
        style.label(axis, name[0].upper() + name[1:], "", "")
        axis.set(xlim=(-5, 5), ylim=(-4.6, 5), aspect="equal", xticks=[-4, 0, 4], yticks=[-4, 0, 4])
    return figure


def _circle() -> Any:
    from matplotlib.patches import Circle

    return Circle(SPIKE, 0.32, fill=False, edgecolor=style.VERMILION, linewidth=1.2)
