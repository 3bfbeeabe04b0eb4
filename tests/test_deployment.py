"""The files of docker/ and the unit of docs/deployment.md fit the server, the package, and each other."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from tempertilt.serving.metrics import Metrics, Watch
from test_docs import parser_of

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
OF_PROMETHEUS = {"job", "instance"}  # labels that it puts on whatever it reads
WORDS = {"sum", "min", "max", "rate", "by", "histogram_quantile"}


def exported() -> dict[str, set[str]]:
    """Labels of every series of a server that has answered, by name."""
    engine: Any = SimpleNamespace(waiting=0, running=0, is_alive=lambda: True)
    metrics = Metrics(engine)
    watch = Watch(metrics, "completions", "first")
    watch.token()
    watch.over("ok", 3, 4)
    metrics.refused.labels("429").inc()
    series: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


def queries() -> list[str]:
    dashboard = json.loads((DOCKER / "grafana" / "tempertilt.json").read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def unknown(query: str, series: dict[str, set[str]]) -> set[str]:
    """What a query names and the server does not export: metrics, and labels that its metrics lack."""
    words = set(re.findall(r"\b[a-z]\w+", re.sub(r"\[[^]]*\]|\"[^\"]*\"", "", query))) - WORDS
    names = words & series.keys()
    return words - names - OF_PROMETHEUS - set().union(*(series[name] for name in names))


def test_every_query_is_of_what_the_server_exports() -> None:
    series = exported()
    assert len(queries()) > 10 and {query: bad for query in queries() if (bad := unknown(query, series))} == {}


@pytest.mark.parametrize(
    "query",
    [
        "sum(t3_answers_pending)",
        "sum by (tenant) (rate(t3_requests_total[1m]))",
        't3_answers_running{model="a"}',
        "sum(t3_requests)",
    ],
)
def test_a_wrong_query_is_seen(query: str) -> None:
    assert unknown(query, exported())


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    families = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in exported() if name.startswith("t3_")}
    shown = " ".join(queries())
    assert families and {family for family in families if family not in shown} == set()


def test_every_file_that_compose_mounts_is_there() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    mounts = [mount.split(":")[:2] for service in services.values() for mount in service["volumes"]]
    files = [DOCKER / source for source, _ in mounts if source.startswith("./")]
    assert len(files) == 4 and all(file.is_file() for file in files)
    named = {source for source, _ in mounts if re.fullmatch("[a-z]+", source)}
    assert named == set(compose["volumes"])
    build = services["t3"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
    targets = dict(mounts)
    [provider] = yaml.safe_load((DOCKER / "grafana" / "dashboards.yaml").read_text(encoding="utf-8"))["providers"]
    assert Path(targets["./grafana/tempertilt.json"]).parent == Path(provider["options"]["path"])


def test_prometheus_finds_the_server_and_grafana_finds_prometheus() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    [job] = yaml.safe_load((DOCKER / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["t3:8000"]}] and "t3" in services
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{services['prometheus']['secrets'][0]}"
    [source] = yaml.safe_load((DOCKER / "grafana" / "datasources.yaml").read_text(encoding="utf-8"))["datasources"]
    dashboard = json.loads((DOCKER / "grafana" / "tempertilt.json").read_text(encoding="utf-8"))
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    assert used == {source["uid"]}


def test_the_commands_are_of_this_server() -> None:
    command = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]["t3"]["command"]
    args = parser_of("serve").parse_args(command[1:])
    assert command[0] == "serve" and args.log_format == "json" and args.adapter[0].endswith("=/adapter")
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    [text] = re.findall(r"```ini\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8"), re.DOTALL)
    unit.read_string(text)
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words[0].startswith("/") and words[1] == "serve" and parser_of("serve").parse_args(words[2:]).port == 8000


def test_the_image_copies_what_is_there_and_takes_the_torch_of_the_makefile() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    sources = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for word in line.split()]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert sources and all((ROOT / source).exists() and f"!{source}" in allowed for source in sources)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [torch] = re.findall(r"^TORCH \?= (\S+)", makefile, re.MULTILINE)
    [index] = re.findall(r"^CPU_INDEX \?= (\S+)", makefile, re.MULTILINE)
    assert f"TORCH={torch}+cpu\n" in text and f"TORCH_INDEX={index}\n" in text
    assert re.search(r"^serve = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE) and ".[serve]" in text
