"""The demonstration's data and flow, on the tiny model; tests/integration runs it on the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tempertilt.cli.demonstration as demo
from tempertilt.cli import main
from tempertilt.config.keys import PROTOCOLS
from tempertilt.errors import ConfigError
from tempertilt.models.base import load_base


def test_parts_do_not_overlap_and_only_the_last_authors_are_forgotten() -> None:
    data = demo.demo_data(demo.DemoConfig(authors=5, forget_authors=2, questions=3))
    assert len(data.forget) == len(data.forget_paraphrased) == 6
    assert {record.document for record in data.forget} == {"author-003", "author-004"}
    assert not {record.document for record in data.retain} & {"author-003", "author-004"}
    parts = [{record.key for record in part} for part in data]
    assert sum(map(len, parts)) == len(set().union(*parts))
    with pytest.raises(ConfigError, match="must be < 5"):
        demo.DemoConfig(authors=5, forget_authors=5)


@pytest.mark.integration
def test_the_flow_and_its_cache(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "load_base", lambda _alias, **options: load_base(str(tiny_dir), **options))
    taught: list[int] = []
    original = demo.finetune
    monkeypatch.setattr(demo, "finetune", lambda *args, **kwargs: (taught.append(1), original(*args, **kwargs))[1])
    arguments = [
        "demo",
        "--authors",
        "3",
        "--forget-authors",
        "1",
        "--questions",
        "2",
        "--show",
        "1",
        "--json",
        "--quiet",
    ]
    reports: list[dict[str, Any]] = []
    for _ in range(2):
        assert main(arguments) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert taught == [1]
    assert reports[0]["likelihood"] == reports[1]["likelihood"] and reports[0]["answers"] == reports[1]["answers"]
    assert set(reports[0]["likelihood"]) == {"forget", "paraphrase", "retain", "unrelated"}
    assert {name: of[0] for name, of in reports[0]["facts_named"].items()} == {"forget": 2, "paraphrase": 2}
    assert set(reports[0]["seconds"]) == {"load", "teach", "unlearn", "compare"}
    monkeypatch.setitem(PROTOCOLS, "estimate", PROTOCOLS["estimate"] + 1)  # another adapter beside the one that is there
    assert main([*arguments[:-2], "--quiet"]) == 0
    assert "greedy recall" in capsys.readouterr().out
