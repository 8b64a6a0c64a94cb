import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from attune import metrics
from attune.rehearsal.watch import read_samples, ring_state


def test_pages_of_all_services_make_one_state() -> None:
    registry = CollectorRegistry()
    Gauge("attune_training_state", "", ["state"], registry=registry).labels("training").set(1)
    Gauge("attune_training_step", "", registry=registry).set(14)
    Gauge("attune_training_steps", "", registry=registry).set(26)
    cycles = Counter("attune_training_cycles", "", ["persona", "outcome"], registry=registry)
    cycles.labels("concierge", "skipped").inc()
    cycles.labels("tutor", "skipped").inc(5)
    examples = Gauge("attune_dataset_examples", "", ["persona", "recipe", "split", "label"], registry=registry)
    examples.labels("concierge", "thumbs", "train", "liked").set(170)
    examples.labels("concierge", "thumbs", "heldout", "disliked").set(30)
    examples.labels("concierge", "pairs", "train", "ranking").set(7)
    Gauge("vllm:num_requests_running", "", registry=registry).set(9)
    state = ring_state(read_samples(generate_latest(registry).decode()), "concierge")
    assert (state.training_state, state.training_step, state.training_steps) == ("training", 14, 26)
    assert state.cycles == {"skipped": 1}
    assert state.dataset_examples == 200
    assert state.swap_seconds is None


@pytest.mark.parametrize(
    "name",
    [
        "attune_requests_in_flight", "attune_event_log_depth_records", "attune_lake_rows_total",
        "attune_datasets_built_total", "attune_dataset_examples", "attune_new_feedback", "attune_training_state",
        "attune_training_step", "attune_training_steps", "attune_training_cycles_total", "attune_policies_loaded",
        "attune_swap_seconds",
    ],
)  # fmt: skip
def test_what_is_read_is_declared(name: str) -> None:
    declared = {
        f"{metric._name}_total" if isinstance(metric, Counter) else metric._name
        for metric in vars(metrics).values()
        if hasattr(metric, "_name")
    }
    assert name in declared


def test_a_page_without_our_metrics_says_nothing() -> None:
    assert read_samples("# HELP x y\nvllm:x 1\n") == []
    assert ring_state([], "concierge").training_state == "idle"
