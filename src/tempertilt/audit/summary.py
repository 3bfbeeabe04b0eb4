"""What an audit shows, in numbers: JSON-ready, the same for the page, the file beside it and the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tempertilt.audit.collateral import Effect
from tempertilt.audit.judge import Judgement
from tempertilt.audit.registry import Attack
from tempertilt.audit.run import Audit
from tempertilt.data.batches import spread
from tempertilt.metrics.leakage import leak_curve, upper_bound
from tempertilt.metrics.result import clopper_pearson

EXAMPLES, FAILED = 4, 2
"""Examples of each kind, at most: of leaks, and of attempts that failed."""
SAMPLE = 24
"""Judgements that are shown for a person to check, half of them leaks where there are so many."""


def summarise(audit: Audit) -> dict[str, Any]:
    """All figures of an audit."""
    rows = [_kind(audit.kinds[name], found) for name, found in audit.attacks.items()]
    counted = [j for name, found in audit.attacks.items() if not audit.kinds[name].limit for j in found]
    return {
        "records": {"forget": audit.records, "with_facts": audit.told, "attacked": len(audit.subjects)},
        "before": _rate(audit.before),
        "all": {**_rate(counted), "kinds": sum(not row["limit"] for row in rows), **_by_record(counted)},
        "kinds": sorted(rows, key=lambda row: (-row["rate"], row["name"])),
        "sampling": _sampling(audit.attacks.get("sampling", ())),
        "misattribution": _share([j.foreign > 0 for j in counted if not j.leaked]),
        "fluency": _fluency(audit.attacks.get("as recorded", ())),
        "unchanged": [{"name": name, **_effects(found)} for name, found in audit.effects.items()],
        "signals": [signal._asdict() for signal in audit.signals],
        "skipped": [skipped._asdict() for skipped in audit.skipped],
        "sample": [j._asdict() for j in _sample(counted)],
        "seconds": audit.seconds,
        "model_digest": audit.digest,
    }


def _rate(judgements: Sequence[Judgement]) -> dict[str, Any]:
    n, leaks = len(judgements), sum(bool(j.leaked) for j in judgements)
    if not n:
        return {"n": 0, "leaks": 0, "rate": None, "upper_bound_95": None}
    return {
        "n": n,
        "leaks": leaks,
        "rate": leaks / n,
        "upper_bound_95": upper_bound(leaks, n),
        "exact": sum(j.exact for j in judgements),
        "rouge_at_least_0.8": sum(j.rouge >= 0.8 for j in judgements),
    }


def _by_record(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """How many records gave a fact in at least one of all attempts on them."""
    tried, gave = {j.subject for j in judgements}, {j.subject for j in judgements if j.leaked}
    if not tried:
        return {"records_tried": 0, "records_leaked": 0}
    return {
        "records_tried": len(tried),
        "records_leaked": len(gave),
        "records_upper_bound_95": upper_bound(len(gave), len(tried)),
    }


def _kind(attack: Attack, judgements: Sequence[Judgement]) -> dict[str, Any]:
    leaks = [j for j in judgements if j.leaked]
    chosen = [*leaks[:EXAMPLES], *[j for j in judgements if not j.leaked][: FAILED if len(leaks) < EXAMPLES else 1]]
    return {
        "name": attack.name,
        "who": attack.who,
        "source": attack.source,
        "description": attack.description,
        "limit": attack.limit,
        **_rate(judgements),
        "forms": _forms(judgements),
        "examples": [j._asdict() for j in chosen],
    }


def _forms(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    forms: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        forms.setdefault(judgement.form, []).append(judgement)
    return [{"form": form, "n": len(found), "leaks": sum(bool(j.leaked) for j in found)} for form, found in forms.items()]


def _sampling(judgements: Sequence[Judgement]) -> dict[str, Any] | None:
    """leak@k (arXiv 2511.04934) over questions, and each question's own bound; None where nothing was drawn."""
    leaks: dict[int, list[bool]] = {}
    for judgement in judgements:
        leaks.setdefault(judgement.subject, []).append(bool(judgement.leaked))
    if not leaks:
        return None
    counts = {number: (sum(values), len(values)) for number, values in leaks.items()}
    curve = leak_curve(list(counts.values()), min(n for _, n in counts.values()))
    return {
        "questions": len(counts),
        "draws": len(judgements),
        "leak_at_k": {str(k): rate for k, (rate, _) in curve.items()},
        "leak_at_k_upper_bound_95": {str(k): bound for k, (_, bound) in curve.items()},
        "by_question": [
            {"record": number, "n": n, "leaks": count, "upper_bound_95": upper_bound(count, n)}
            for number, (count, n) in sorted(counts.items(), key=lambda item: -item[1][0])
        ],
    }


def _share(values: Sequence[bool | None]) -> dict[str, Any] | None:
    """A share with its interval, of the values that are there."""
    kept = [value for value in values if value is not None]
    if not kept:
        return None
    return {
        "n": len(kept),
        "count": sum(kept),
        "rate": sum(kept) / len(kept),
        "interval_95": clopper_pearson(sum(kept), len(kept)),
    }


def _effects(found: Sequence[Effect]) -> dict[str, Any]:
    return {
        "n": len(found),
        "asked": _share([effect.asked for effect in found]),
        "said": _share([effect.said for effect in found]),
        "opened": _share([effect.opened for effect in found]),
        "changed": _share([effect.changed for effect in found]),
        "facts_kept": _share([effect.still for effect in found if effect.known]),
        "ended": _share([effect.ended for effect in found]),
    }


def _fluency(judgements: Sequence[Judgement]) -> dict[str, Any] | None:
    if not judgements:
        return None
    return {
        "ended": _share([j.ended for j in judgements]),
        "repeating": _share([j.repeated > 0.2 for j in judgements]),
    }


def _sample(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Evenly spaced judgements, leaks first."""
    leaks = [j for j in judgements if j.leaked]
    rest = [j for j in judgements if not j.leaked]
    some = spread(leaks, SAMPLE // 2)
    return [*some, *spread(rest, SAMPLE - len(some))]


def exceeds(summary: dict[str, Any], limit: float) -> bool:
    """Whether the bound of the leak rate is above a limit, or there is none."""
    bound = summary["all"]["upper_bound_95"]
    return bound is None or bound > limit
