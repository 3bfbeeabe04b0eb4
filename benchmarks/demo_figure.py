"""The figure of the README: how many answers gave a fact away before and after, from what `t3 demo --json` printed.

python demo_figure.py results/demo.json ../docs/figures/demo.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment

WIDTH, BAR, ROW, TOP, LEFT = 860, 13, 46, 58, 330
TEMPLATE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}"
     role="img"
     aria-labelledby="title desc">
  <title id="title">Answers about {{ person }} that give a fact away, before and after</title>
  <desc id="desc">
    {% for row in rows %}{{ row.name }}: {{ row.before }} of {{ row.n }} before, {{ row.after }} after. {% endfor %}{{ kept }}
  </desc>
  <style>
    text { font: 14px system-ui, sans-serif; fill: #1b1f24; }
    .small { font-size: 12px; fill: #57606a; }
    .before { fill: #8c959f; }
    .after { fill: #bc4c00; }
    .axis { stroke: #8c959f; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .small { fill: #9da7b1; }
      .before { fill: #6e7681; }
      .after { fill: #f0883e; }
      .axis { stroke: #6e7681; }
    }
  </style>
  <rect class="before" x="{{ left }}" y="14" width="12" height="12"/>
  <text class="small" x="{{ left + 18 }}" y="25">before</text>
  <rect class="after" x="{{ left + 84 }}" y="14" width="12" height="12"/>
  <text class="small" x="{{ left + 102 }}" y="25">after</text>
  {% for row in rows %}
  <text x="{{ left - 14 }}" y="{{ row.y + 18 }}" text-anchor="end">{{ row.name }}</text>
  <rect class="before" x="{{ left }}" y="{{ row.y }}" width="{{ row.before_width }}" height="{{ bar }}"/>
  <text class="small" x="{{ left + row.before_width + 8 }}" y="{{ row.y + 11 }}">{{ row.before }} of {{ row.n }}</text>
  <rect class="after" x="{{ left }}" y="{{ row.y + bar + 2 }}" width="{{ row.after_width }}" height="{{ bar }}"/>
  <text class="small" x="{{ left + row.after_width + 8 }}" y="{{ row.y + bar + 13 }}">{{ row.after }} of {{ row.n }}</text>
  {% endfor %}
  <line class="axis" x1="{{ left }}" y1="{{ top - 8 }}" x2="{{ left }}" y2="{{ height - 34 }}"/>
  <text class="small" x="10" y="{{ height - 12 }}">{{ kept }}</text>
</svg>
"""


def figure(result: dict[str, Any]) -> str:
    """The figure as SVG that reads in light and in dark."""
    most = max(form["n"] for form in result["forgotten"])
    rows = [
        form
        | {"name": form["name"].replace("as in the records, with a text", "with a text"), "y": TOP + ROW * number}
        | {f"{when}_width": max(2, round((WIDTH - LEFT - 90) * form[when] / most)) for when in ("before", "after")}
        for number, form in enumerate(result["forgotten"])
    ]
    n, same = (sum(kept[name] for kept in result["kept"]) for name in ("n", "same"))
    kept = f"Answers about {result['person']} that give a fact away. {same} of {n} answers about anything else are unchanged."
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    values = {"rows": rows, "person": result["person"], "kept": kept, "height": TOP + ROW * len(rows) + 34}
    return environment.from_string(TEMPLATE).render(values, width=WIDTH, bar=BAR, top=TOP, left=LEFT)


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    args.figure.write_text(figure(json.loads(args.result.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
