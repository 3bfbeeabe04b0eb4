"""The experiments: what they measure against a direct evaluation, their files, and the command."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from tempertilt.cli import main
from tempertilt.errors import ConfigError, MissingExtraError
from tempertilt.theory.experiments import EXPERIMENTS, finite_samples, mixture_2d, run_experiment, spike, token_toy, trade_off
from tempertilt.theory.experiments.result import Table, show


def test_spike_experiment_reproduces_the_closed_forms() -> None:
    for row in spike.run().table.records():
        eps, t, a = float(row["eps"]), float(row["T"]), 1 - math.exp(-float(row["delta"]) / 0.1)
        x = (0.1 / 0.9) ** (1 / t) * eps ** (1 - 1 / t) * a
        assert math.isclose(float(row["forget error"]), x / eps / (1 + x), rel_tol=1e-10)
        assert abs(float(row["retain error"]) - math.log1p(x)) < 1e-10
    for s in spike.RATES:
        for t in (1.0, 2.0, 5.0):
            assert math.isclose(spike.growth(s, t), 1 / t - s, abs_tol=2e-3)


@pytest.mark.integration
def test_learned_classifiers_leak_less_and_bias_more_as_t_grows() -> None:
    problem = finite_samples.Problem.make(1e-4)
    for model in finite_samples.MODELS:
        runs = np.array([finite_samples.measure(problem, model, 100, seed, (1.0, 1.5, 3.0)) for seed in range(4)])
        forget, retain, bias, delta = np.moveaxis(runs, -1, 0)
        assert (forget[:, 0] > 5 * forget[:, 1]).all() and (forget[:, 1] > 2 * forget[:, 2]).all()
        assert (np.diff(bias, axis=1) > 0).all() and (retain[:, 2] > retain[:, 0]).all()
        assert (retain[:, 0] <= delta[:, 0] / (1 - finite_samples.GAMMA)).all()  # Theorem 1(a)


def test_the_learned_log_odds_are_corrected_to_the_true_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = finite_samples.Problem.make(0.1)
    r, f = problem.retain.density, problem.forget.density
    with np.errstate(divide="ignore"):
        balanced = np.clip(np.log(r) - np.log(f), -600, 600)
    monkeypatch.setitem(finite_samples.MODELS, "exact", lambda _x, _y, _seed: lambda _at: balanced)
    [exact] = finite_samples.measure(problem, "exact", 20, 0, (1.0,))
    assert exact.delta < 1e-12 and exact.forget < 1e-12 and exact.retain < 1e-12


@pytest.mark.integration
def test_the_learned_classifier_experiment_summarises_its_runs() -> None:
    result = finite_samples.run_grid(0, 3, (50,), (1e-3,), (1.0, 2.0))
    problem = finite_samples.Problem.make(1e-3)
    runs = np.array([[e.forget for e in finite_samples.measure(problem, "logistic", 50, seed, (1.0, 2.0))] for seed in range(3)])
    rows = [row for row in result.table.records() if row["model"] == "logistic"]
    assert [row["T"] for row in rows] == [1.0, 2.0] and all(row["seeds"] == 3 for row in rows)
    for j, row in enumerate(rows):
        logs = np.log(runs[:, j])
        assert row["F / p_bar"] == pytest.approx(math.exp(logs.mean()))
        half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)  # Student's t, 2 degrees of freedom
        assert row["F / p_bar high"] == pytest.approx(math.exp(logs.mean() + half), rel=1e-5)


def test_trade_off_is_bounded_and_its_choice_is_near_the_best() -> None:
    result = trade_off.run()
    for row in result.table.rows:
        _, t, forget, forget_bound, retain, retain_bound, *_ = map(float, row)
        assert forget <= forget_bound * (1 + 1e-9) and retain <= retain_bound * (1 + 1e-9), t
    table = np.array(result.table.rows, dtype=float)
    for row in result.summary.records():
        of = table[np.isclose(table[:, 0], float(row["delta"]))]
        assert float(row["J at best"]) <= of[:, 7].min() * (1 + 1e-6)
        assert float(row["J by (8.1)"]) < 1.03 * float(row["J at best"])


@pytest.mark.integration
def test_particles_match_the_quadrature() -> None:
    distributions = mixture_2d.Distributions.make()
    log_f = mixture_2d.learn(distributions, np.random.default_rng(1))
    rng = np.random.default_rng(0)
    for t in (1.0, 2.0):
        exact = mixture_2d.quadrature(distributions, log_f, t)
        clouds = [mixture_2d.smc(distributions, log_f, t, rng, 1000) for _ in range(8)]
        shares = [mixture_2d.on_spike(cloud).mean() for cloud in clouds]
        spread = max(float(np.std(shares, ddof=1)), math.sqrt(exact.spike_mass / 1000))
        assert abs(float(np.mean(shares)) - exact.spike_mass) < 4 * spread / math.sqrt(8)
    # importance sampling from the base: E_base[p^(1/T - 1) f; spike] / E_base[p^(1/T - 1) f]
    x = distributions.base.sample(200_000, rng)
    weights = np.exp(-0.5 * distributions.base.log_density(x) + log_f(x))
    assert float(weights[mixture_2d.on_spike(x)].sum() / weights.sum()) == pytest.approx(exact.spike_mass, rel=0.05)
    log_p = float(weights @ distributions.base.log_density(x) / weights.sum())
    assert float(distributions.base.log_density(np.vstack(clouds)).mean()) == pytest.approx(
        log_p, abs=0.09
    )  # standard error 0.02


def test_token_toy_recovers_the_retain_distribution_and_leaks_less_with_t() -> None:
    result = token_toy.run()
    rows = result.table.records()
    exact = [row for row in rows if row["head"] == "exact posterior"]
    assert exact[0]["T"] == 1 and float(exact[0]["total variation"]) < 1e-12 and float(exact[0]["retain error"]) < 1e-12
    for head in dict.fromkeys(row["head"] for row in rows):
        of = [row for row in rows if row["head"] == head]
        assert (np.diff([float(row["P(rest of the string)"]) for row in of]) < 0).all()
        assert (np.diff([float(row["tempering bias"]) for row in of]) > 0).all()
        assert all(float(row["retain error"]) <= float(row["bound, Theorem 6"]) + 1e-12 for row in of)
    mixture = token_toy.make(np.random.default_rng(0))
    first, second, third = token_toy.STRING[:3]
    r = mixture.retain.steps[0][0, first] * mixture.retain.steps[1][first, second]
    f = (1 - token_toy.SLIP) ** 2
    base = 0.95 * r * mixture.retain.steps[2][first * 6 + second, third] + 0.05 * f * (1 - token_toy.SLIP)
    assert token_toy.continuation(mixture.distribution())[0] == pytest.approx(base / (0.95 * r + 0.05 * f))


def test_a_table_in_its_formats() -> None:
    table = Table(("name", "x"), [["a", 0.000123456], ["b", 12345.0]])
    assert table.markdown().splitlines()[2:] == ["| a | 1.23e-04 |", "| b | 1.23e+04 |"]
    assert next(csv.DictReader(table.csv().splitlines())) == {"name": "a", "x": "0.000123456"}
    assert [show(x) for x in (0.0, 3, "t", 1234.5, 0.0345, math.inf)] == ["0", "3", "t", "1234", "0.0345", "inf"]


@pytest.mark.integration
def test_the_command_writes_figure_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert main(["theory", "--experiment", "spike", "--output-dir", str(out)]) == 0
    printed = capsys.readouterr()
    assert "T = 1/s" in printed.out and "| eps |" in printed.out and "spike.png" in printed.err
    assert sorted(path.name for path in out.iterdir()) == ["spike.csv", "spike.json", "spike.md", "spike.png"]
    assert (out / "spike.png").read_bytes().startswith(b"\x89PNG") and (out / "spike.md").read_text() in printed.out
    report = json.loads((out / "spike.json").read_text())
    assert report["experiment"] == "spike" and len(report["table"]) == len(spike.EPS) * len(spike.TEMPERATURES)
    rows = list(csv.DictReader((out / "spike.csv").read_text().splitlines()))
    assert float(rows[0]["forget error"]) == report["table"][0]["forget error"]


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["theory"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(EXPERIMENTS)
    assert main(["theory", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == list(EXPERIMENTS)
    for argv, message in (
        (["--experiment", "spoke"], "no experiment 'spoke'; must be one of"),
        (["--experiment", "spike", "--seed", "-1"], "seed is -1; must be"),
        (["--output-dir", str(tmp_path / "x")], "--output-dir needs --experiment, one of"),
    ):
        assert main(["theory", *argv]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main(["theory", "--experiment", "token-toy", "--seed", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["seed"] == 3


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert run_experiment("token-toy", 5).report() == run_experiment("token-toy", 5).report()
    assert run_experiment("token-toy", 5).report() != run_experiment("token-toy", 6).report()
    with pytest.raises(ConfigError):
        run_experiment("nothing")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"tempertilt\[theory\]"):
        spike.run().write(tmp_path)
    with pytest.raises(MissingExtraError, match="scikit-learn"):
        finite_samples.run()
    with pytest.raises(MissingExtraError, match="scikit-learn"):
        mixture_2d.run()


@pytest.mark.integration
def test_every_experiment_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_2d, "PARTICLES", 200)
    monkeypatch.setattr(mixture_2d, "ISLANDS", 2)
    results = [module.run() for module in (trade_off, token_toy, mixture_2d)]
    results.append(finite_samples.run_grid(0, 2, (50, 100), (1e-2, 1e-3), (1.0, 2.0)))
    for result in results:
        assert (result.write(tmp_path)[0]).stat().st_size > 20_000
