from pathlib import Path

import pytest

from evoquant.config.yaml_loader import load_yaml
from evoquant.hardware import Quantity, device_names

ROOT = Path(__file__).parents[3]
DATA = load_yaml(ROOT / "docs" / "published_latencies.yaml").data


@pytest.mark.parametrize("row", DATA["latencies_ms"], ids=lambda row: f"{row['device']}-{row['model']}-{row['plan']}")
def test_every_published_latency_has_a_ground_and_its_line_in_the_documentation(row):
    figure = Quantity(value=row["value"], kind=row["kind"], source=row["source"])
    assert figure.source in DATA["sources"]
    assert row["device"] in device_names()
    start = f"| {row['device']} | {row['model']} | {row['plan']} | {row.get('batch', '1')} | {row['value']} |"
    assert start in (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
