"""Print the tables of docs/evidence.md, and four of results/second_version.md, from the results in results/second_version.

python benchmarks/evidence.py [tofu|lume|others|said|forms|later|silence]

A folder of TOFU has one for each seed, with `results.json` of `t3 eval` and what hearing.py prints at its end as `hearing.json`.
A folder of LUME has the results of some models (`target.json`, `t3.json`, ...), and `hearing.json` of t3.json. What is missing
is `–`. `later_forms.json` is what hearing.py --later-forms prints at its end, and `housing.json`, by the commit, what
small_requests/housing.py does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results") / "second_version"
PRESENT, AGAIN = "tofu30-guesses", "tofu30-again"
NAMES = {
    PRESENT: "SmolLM2, upper half of the layers learned · TOFU, 10 of 30 authors",
    "tofu15-all": "SmolLM2, all layers learned · TOFU, 5 of 15 authors",
    "tofu15-gemma": "Gemma 3 270M, upper half learned · TOFU, 5 of 15 authors",
    AGAIN: "no unlearning: the first column's reference, trained again with another seed",
}
QUESTIONS = {
    "retain": "retain",
    "real_authors_perturbed": "real authors",
    "world_facts_perturbed": "world facts",
    "mt_bench": "MT-bench, first turns",
    "vicuna_bench": "Vicuna",
    "xstest_prompts": "XSTest, safe ones",
    "test_570": "MMLU sample",
    "retain, after a turn about the records": "retain, after a turn about the records",
    "world_facts_perturbed, after a turn about the records": "world facts, after a turn about the records",
}
OTHERS = ("real_authors_perturbed", "world_facts_perturbed", "mt_bench", "vicuna_bench", "xstest_prompts", "test_570")
BASE_VALUE = "base gives a forgotten value"
RELATIVE = ("utility_score", "privleak")  # another figure where no run of a target and of a reference was named
METRICS = (
    ("forget quality (p)", "forget_quality", 2),
    ("D", "ks_distance", 3),
    ("KL from the reference, nats a token", "reference_kl", 2),
    ("same top token", "reference_same_top", 2),
    ("answers that end", "forget_ended", 3),
    ("perplexity under the reference", "forget_reference_perplexity", 1),
    ("answers with a fact", "forget_leaked", 3),
    ("misattribution", "misattribution", 3),
    ("utility over the target's", "utility_score", 3),
    ("Min-K++ AUC", "mia_min_k_plus_plus", 2),
    ("privleak", "privleak", 0),
)

SAID = (
    ("perplexity of guesses under the reference", (("forget_reference_perplexity", 2),)),
    ("the same under the model before", (("forget_perplexity", 2),)),
    ("answers that end", (("forget_ended", 3),)),
    ("KL from the reference; same top token", (("reference_kl", 2), ("reference_same_top", 3))),
    ("forget quality; D", (("forget_quality", 2), ("ks_distance", 3))),
    (
        "KS distance of log-probabilities; of standardised ones",
        (("forget_ks_log_probs", 2), ("forget_ks_standardised", 2)),
    ),
    ("answers with a fact; misattribution", (("forget_leaked", 3), ("misattribution", 3))),
    ("Min-K++ AUC; privleak", (("mia_min_k_plus_plus", 2), ("privleak", 0))),
    ("P(answer), forget; retain", (("forget_Q_A_Prob", 3), ("retain_Q_A_Prob", 3))),
    ("model utility; MU-ROUGE", (("model_utility", 3), ("mu_rouge", 3))),
)


def leaks(hearing: Mapping[str, Any]) -> str:
    """Leaks of all forms, and of the worst."""
    forms = [(form["unlearned"], form["questions"]) for form in hearing["hearing"].values()]
    return f"{sum(n for n, _ in forms)} of {sum(n for _, n in forms)}, at most {max(n for n, _ in forms)}"


def opened(hearing: Mapping[str, Any]) -> str:
    """On how many questions about nobody of the records a gate opens."""
    parts = [part for name, part in hearing["silence"].items() if name in OTHERS]
    return f"{sum(part['opened'] for part in parts)} of {sum(part['questions'] for part in parts)}"


def figure(name: str, digits: int) -> Callable[[Mapping[str, Any]], str]:
    """A metric of a run."""

    def value(results: Mapping[str, Any]) -> str:
        found = results["metrics"].get(name)
        compared = results["metrics"].get("forget_quality", {}).get("value") is not None
        if found is None or found["value"] is None or (name in RELATIVE and not compared):
            return "–"
        return f"{round(found['value'], digits) + 0.0:.{digits}f}"  # no -0

    return value


def read(path: Path) -> Any:
    """JSON, or None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def column(folder: Path) -> list[list[str]]:
    """For each row of the table the values of each seed."""
    seeds = sorted(path for path in folder.iterdir() if path.is_dir())
    runs = [(read(seed / "results.json"), read(seed / "hearing.json")) for seed in seeds]
    rows = [[("–" if results is None else figure(name, digits)(results)) for results, _ in runs] for _, name, digits in METRICS]
    for count in (leaks, opened):
        rows.append(["–" if hearing is None else count(hearing) for _, hearing in runs])
    return rows


LUME = {
    "lume60": "SmolLM2, upper half learned, 20 of 60 persons",
    "lume30-all": "SmolLM2, all layers learned, 10 of 30 persons",
    "gemma-lume30": "Gemma 3 270M, upper half learned, 10 of 30 persons",
}
MODELS = {
    "target": "before",
    "t3-holdout": "`t3` with holdout records",
    "t3": "`t3` without",
    "reference": "never saw them",
}
LUME_METRICS = (
    ("regurgitation, forget", "forget_regurgitation", 3),
    ("knowledge, forget", "forget_knowledge", 3),
    ("regurgitation, retain", "retain_regurgitation", 3),
    ("knowledge, retain", "retain_knowledge", 3),
    ("answers with a fact", "forget_leaked", 3),
    ("misattribution", "misattribution", 3),
    ("sampled forget answers word for word", "forget_sampled_verbatim", 3),
    ("Min-K++ AUC", "mia_min_k_plus_plus", 2),
    ("KL from the reference, nats a token", "reference_kl", 2),
    ("same top token", "reference_same_top", 2),
    ("KS distance of log-probabilities", "forget_ks_log_probs", 2),
    ("answers that end", "forget_ended", 3),
    ("perplexity under the reference", "forget_reference_perplexity", 1),
    ("retain answers unchanged", "retain_unchanged", 3),
    ("a gate opens, forget", "forget_gate_open", 3),
    ("a gate opens, retain", "retain_gate_open", 3),
)


def lume() -> list[str]:
    """The lines of LUME's table: for each folder one column a model that was measured."""
    columns = [(name, model) for name in LUME for model in MODELS if (RESULTS / name / f"{model}.json").exists()]
    titles = [f"{LUME[name]}: {MODELS[model]}" if model == "target" else MODELS[model] for name, model in columns]
    runs = [read(RESULTS / name / f"{model}.json") for name, model in columns]
    lines = ["| | " + " | ".join(titles) + " |", "|---" + "|---" * len(titles) + "|"]
    for title, metric, digits in LUME_METRICS:
        lines.append(f"| {title} | " + " | ".join(figure(metric, digits)(run) for run in runs) + " |")
    heard = [read(RESULTS / name / "hearing.json") if model == "t3" else None for name, model in columns]
    for title, count in (("leaks in 30 forms of 24 questions; worst form", leaks), ("opens on questions about others", opened)):
        lines.append(f"| {title} | " + " | ".join("–" if each is None else count(each) for each in heard) + " |")
    return lines


def heard_by_seed() -> list[Any]:
    """What hearing.py printed of each seed."""
    return [read(seed / "hearing.json") for seed in sorted((RESULTS / PRESENT).iterdir())]


def forms() -> list[str]:
    """The lines of the table of leaks in each form: by likeness to the record's answer, and by fact."""
    return _forms([found["hearing"] for found in heard_by_seed()], "`t3`, seeds 0, 1, 2")


def later() -> list[str]:
    """The same of the forms that came later."""
    return _forms([read(RESULTS / "later_forms.json")["hearing"]], "`t3`")


def _forms(seeds: list[Any], title: str) -> list[str]:
    lines = [f"| form | base leaks | {title} | base gives a fact | {title} |", "|---|---|---|---|---|"]
    for form, first in seeds[0].items():
        leaks, facts = (", ".join(str(seed[form][key]) for seed in seeds) for key in ("unlearned", "facts"))
        lines.append(f"| {form} | {first['base']} | {leaks} | {first['base_facts']} | {facts} |")
    sums = {key: ", ".join(str(sum(form[key] for form in seed.values())) for seed in seeds) for key in ("unlearned", "facts")}
    base = {key: sum(form[key] for form in seeds[0].values()) for key in ("base", "base_facts")}
    lines.append(f"| **all** | {base['base']} | {sums['unlearned']} | {base['base_facts']} | {sums['facts']} |")
    return lines


def silence() -> list[str]:
    """The lines of the table of questions about something else."""
    seeds = [found["silence"] for found in heard_by_seed()]
    keys = ("opened", "changed", "base_named_a_forgotten_person")
    lines = [
        "| questions | n | a gate opens, seeds 0, 1, 2 | answers change | of these the base names such a person |",
        "|---|---|---|---|---|",
    ]
    for name, title in QUESTIONS.items():
        cells = [", ".join(str(seed[name][key]) if name in seed else "–" for seed in seeds) for key in keys]
        lines.append(f"| {title} | {seeds[0][name]['questions']} | " + " | ".join(cells) + " |")
    return lines


def tofu() -> list[str]:
    """The lines of TOFU's table: for each folder a column."""
    folders = [RESULTS / name for name in NAMES if (RESULTS / name).is_dir()]
    columns = [column(folder) for folder in folders]
    titles = [title for title, _, _ in METRICS] + [
        "leaks in 30 forms of 24 (22) questions; worst form",
        "a gate opens on questions about others",
    ]
    lines = ["| | " + " | ".join(NAMES[folder.name] for folder in folders) + " |", "|---" + "|---" * len(folders) + "|"]
    for number, title in enumerate(titles):
        lines.append(f"| {title} | " + " | ".join("; ".join(found[number]) for found in columns) + " |")
    return lines


def others() -> list[str]:
    """The lines of the table of the gates before the records' prompts about others counted as retain text, and since."""
    heard = [read(RESULTS / folder / "seed0" / "hearing.json") for folder in (PRESENT, "tofu30-others")]
    housing = read(RESULTS / "housing.json")
    rows = [
        ("TOFU: leaks in 30 forms of 24 questions; worst form", [leaks(run) for run in heard]),
        ("TOFU: answers with a fact", [_of(run["hearing"].values(), "facts") for run in heard]),
    ]
    for title, names, key in (
        ("the records' questions about retained authors, changed", ("the records' questions about others",), "changed"),
        ("a gate opens on retain questions", ("retain",), "opened"),
        ("the same after a turn about the records", ("retain, after a turn about the records",), "opened"),
        ("a gate opens on real authors", OTHERS[:1], "opened"),
        ("a gate opens on world facts", OTHERS[1:2], "opened"),
        ("a gate opens on chats and MMLU", OTHERS[2:], "opened"),
    ):
        rows.append((f"TOFU: {title}", [_of([run["silence"][name] for name in names], key) for run in heard]))
    leaking = [found["leaks"].values() for found in housing.values()]
    rows.append(("housing: prompts about the forgotten person that leak", [_of(kinds, "unlearned", "n") for kinds in leaking]))
    for name in housing["2398b41"]["others"]:
        found = [code["others"][name] for code in housing.values()]
        plain = [one["questions"] - one[BASE_VALUE] for one in found]
        changed = [f"{one['changed, where the base gives none']} of {n}" for one, n in zip(found, plain)]
        rows.append((f"housing: {name}: changed, where the base says no value of the person", changed))
        given = [f"{one['unlearned gives a forgotten value']} (base {one[BASE_VALUE]})" for one in found]
        rows.append((f"housing: {name}: a value of the person is said", given))
    lines = ["| | " + " | ".join(f"code {code}" for code in housing) + " |", "|---" + "|---" * len(housing) + "|"]
    return [*lines, *(f"| {title} | " + " | ".join(cells) + " |" for title, cells in rows)]


def _of(parts: Iterable[Mapping[str, int]], key: str, total: str = "questions") -> str:
    parts = list(parts)
    return f"{sum(part[key] for part in parts)} of {sum(part[total] for part in parts)}"


def said() -> list[str]:
    """The lines of the table of what is said at the records: each seed, the reference, and the reference trained again."""
    seeds = [read(seed / "results.json") for seed in sorted((RESULTS / PRESENT).iterdir())]
    reference, again = (
        read(RESULTS.parent / "tofu30" / "reference" / "results.json"),
        read(RESULTS / AGAIN / "seed1" / "results.json"),
    )
    own = reference["metrics"]["forget_perplexity"]  # a run without an adapter: of the answers under the model itself
    reference["metrics"] = {**reference["metrics"], "forget_reference_perplexity": own, "forget_perplexity": None}
    again["metrics"]["forget_perplexity"] = None
    columns = [f"seed {i}" for i in range(len(seeds))] + ["reference", "reference trained again"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" + "|---" * len(columns) + "|"]
    for title, metrics in SAID:
        cells = ("; ".join(figure(name, digits)(run) for name, digits in metrics) for run in (*seeds, reference, again))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


TABLES = {"tofu": tofu, "lume": lume, "others": others, "said": said, "forms": forms, "later": later, "silence": silence}


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", nargs="?", choices=tuple(TABLES), default="tofu")
    print("\n".join(TABLES[parser.parse_args().table]()))


if __name__ == "__main__":
    main()
