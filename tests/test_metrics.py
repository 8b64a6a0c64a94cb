import ast
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram

from attune import metrics
from attune.metrics_page import serve_metrics

SOURCES = Path(metrics.__file__).parent
DECLARED = {name: value for name, value in vars(metrics).items() if isinstance(value, Counter | Gauge | Histogram)}
UNITS = ("_seconds", "_bytes", "_records", "_total")
COUNTS = {
    # Gauges that count things, or say a state or a share, have no unit.
    "attune_requests_in_flight",
    "attune_engine_serving",
    "attune_erasures_running",
    "attune_policy_in_service",
    "attune_policies_loaded",
    "attune_dataset_examples",
    "attune_lake_damaged_files",
    "attune_new_feedback",
    "attune_training_state",
    "attune_training_step",
    "attune_training_steps",
    "attune_verdict_passed",
    "attune_persona_problems",
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_metric_is_ours_and_has_a_base_unit(name: str) -> None:
    metric = DECLARED[name]
    full = metric._name + ("_total" if isinstance(metric, Counter) else "")
    assert re.fullmatch(r"attune_[a-z_]+", full)
    assert full in COUNTS or full.endswith(UNITS)
    assert metric._documentation.endswith(".")


@pytest.mark.parametrize("name", DECLARED)
def test_no_label_is_an_id(name: str) -> None:
    assert not [label for label in DECLARED[name]._labelnames if label == "id" or label.endswith("_id")]


def test_every_metric_is_set_somewhere_and_none_is_declared_elsewhere() -> None:
    used: set[str] = set()
    for file in SOURCES.rglob("*.py"):
        tree = ast.parse(file.read_text())
        used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
        if file.name != "metrics.py":
            made = [
                node.func.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"Counter", "Gauge", "Histogram"}
                and "prometheus_client" in file.read_text()
            ]
            assert not made, file
    assert not DECLARED.keys() - used


def test_the_page_is_served_at_a_free_port() -> None:
    port, server, thread = serve_metrics("127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            text = page.read().decode()
    finally:
        server.shutdown()
        thread.join(10)
    assert "attune_engine_serving 0.0" in text
    assert "process_start_time_seconds" in text
