"""Every metric that attune exports, declared once. Base units; label values from closed sets, never an id."""

import collections
from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# Every gRPC server
REQUESTS = Counter("attune_requests_total", "Calls ended, by method and gRPC status.", ["method", "status"])

# Everything that listens with TLS
TLS_CERTIFICATE_EXPIRY = Gauge("attune_tls_certificate_expiry_seconds", "When the certificate in use ends, Unix time.")

# inference
REQUESTS_IN_FLIGHT = Gauge("attune_requests_in_flight", "Chat calls running now.", ["persona"])
TIME_TO_FIRST_TOKEN = Histogram(
    "attune_time_to_first_token_seconds", "From receipt to the first token.", ["persona"], buckets=_SECONDS
)
PROMPT_TOKENS = Counter("attune_prompt_tokens_total", "Prompt tokens read.", ["persona"])
OUTPUT_TOKENS = Counter("attune_output_tokens_total", "Tokens sampled.", ["persona"])
STREAM_MESSAGES = Counter("attune_stream_messages_total", "Messages sent on chat streams.", ["persona"])
RESPONSES = Counter("attune_responses_total", "Responses logged, by how they ended.", ["persona", "finish_reason"])
FEEDBACK = Counter("attune_feedback_total", "Feedback logged, by signal.", ["persona", "signal"])
ENGINE_SERVING = Gauge("attune_engine_serving", "1 while health answers SERVING, else 0.")
POLICY_IN_SERVICE = Gauge(
    "attune_policy_in_service", "Number of the policy with most of the traffic; 0 is the base model.", ["persona"]
)
POLICIES_LOADED = Gauge("attune_policies_loaded", "Adapters in the engine now.")
SWAPS = Counter("attune_swaps_total", "Policies put into the engine, by outcome.", ["persona", "outcome"])
SWAP_SECONDS = Histogram(
    "attune_swap_seconds", "From seeing a rollout entry to serving by it.", ["persona"], buckets=_SECONDS
)

# event log
EVENT_LOG_DEPTH = Gauge("attune_event_log_depth_records", "Records not yet read by the slowest reader.", ["topic"])
EVENT_LOG_BYTES = Gauge("attune_event_log_bytes", "Bytes held by records, with what is reserved.")
EVENT_LOG_OLDEST_AGE = Gauge("attune_event_log_oldest_age_seconds", "Age of the oldest record not yet read.", ["topic"])
EVENT_LOG_REFUSALS = Counter("attune_event_log_refusals_total", "Reservations refused for want of space.", ["topic"])
EVENT_LOG_COMMIT_SECONDS = Histogram(
    "attune_event_log_commit_seconds", "Duration of a group commit, fsync included.", buckets=_SECONDS
)

# shipper
SHIPPED = Counter("attune_shipped_total", "Records that Kafka has taken.", ["topic"])
SHIPPER_FAILURES = Counter(
    "attune_shipper_failures_total", "Batches that Kafka did not take whole; sent again.", ["topic"]
)
SHIPPER_REFUSED = Counter("attune_shipper_refused_total", "Records that Kafka refused for good, set aside.", ["topic"])
PRODUCERS_REPLACED = Counter(
    "attune_producers_replaced_total", "Kafka producers that made no progress and were replaced."
)

# aggregator
LAKE_LAG = Gauge("attune_lake_lag_records", "Records in the event log that the lake does not hold yet.", ["topic"])
LAKE_ROWS = Counter("attune_lake_rows_total", "Rows committed to the lake.", ["table"])
LAKE_REPEATED = Counter("attune_lake_repeated_total", "Records dropped because their event id was seen.", ["table"])
LAKE_CONTRADICTIONS = Counter(
    "attune_lake_contradictions_total", "Records dropped whose event id was seen with other content.", ["table"]
)
LAKE_STRANGE_TIMES = Counter(
    "attune_lake_strange_times_total", "Rows from before 2000, or more than a day ahead of the clock.", ["table"]
)
LAKE_DAMAGED_FILES = Gauge("attune_lake_damaged_files", "Files that are missing or not as written.", ["table"])
LAKE_OPTIMIZED = Counter("attune_lake_optimized_total", "Rounds of merging and deleting, by outcome.", ["outcome"])
LAKE_CONFLICTS = Counter("attune_lake_conflicts_total", "Batches dropped because another writer was first.", ["table"])
LAKE_OFFSET_ALARMS = Counter(
    "attune_lake_offset_alarms_total", "Times a stored offset lay outside the log's range.", ["topic"]
)
DEAD_LETTERS = Counter("attune_dead_letters_total", "Records that could not be read, set aside.", ["topic"])
MASKED = Counter(
    "attune_privacy_masked_total", "Pieces of personal data masked before the lake, by kind.", ["table", "kind"]
)
EXPIRED = Counter("attune_lake_expired_total", "Rows deleted because their tenant keeps them no longer.", ["table"])
ERASURES_RUNNING = Gauge("attune_erasures_running", "People whose erasure has begun and is not done.")
LAKE_DROPPED = Counter(
    "attune_lake_dropped_total", "Rows of people who were erased that came late, and were dropped.", ["table"]
)
DATASETS_BUILT = Counter("attune_datasets_built_total", "Datasets built.", ["persona", "recipe"])
DATASET_EXAMPLES = Gauge(
    "attune_dataset_examples", "Examples in the newest dataset.", ["persona", "recipe", "split", "label"]
)
NEW_FEEDBACK = Gauge("attune_new_feedback", "Feedback that came since the newest dataset.", ["persona", "recipe"])

# trainer
TRAINING_STATE = Gauge(
    "attune_training_state", "1 for what the trainer is doing: idle, training, evaluating, publishing.", ["state"]
)
TRAINING_STEP = Gauge("attune_training_step", "Optimiser steps done in the running cycle.")
TRAINING_STEPS = Gauge("attune_training_steps", "Optimiser steps that the running cycle will take.")
TRAINING_CYCLES = Counter(
    "attune_training_cycles_total", "Cycles ended: passed, refused, skipped, failed.", ["persona", "outcome"]
)
TRAINING_SECONDS = Gauge("attune_training_seconds", "How long the last cycle took.", ["persona"])
VERDICT_PASSED = Gauge("attune_verdict_passed", "1 when the last verdict let the candidate through.", ["persona"])

# personas
PERSONA_PROBLEMS = Gauge("attune_persona_problems", "Personas whose newest file cannot be read or is gone.")

# rollout
ROLLOUT_ENTRIES = Counter("attune_rollout_entries_total", "Rollout entries written, by author.", ["persona", "author"])


def observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """Observes every value, with one lock for each bucket that got some instead of two for each value."""
    bounds, buckets = histogram._upper_bounds, histogram._buckets
    histogram._sum.inc(sum(values))
    for bucket, count in collections.Counter(bisect_left(bounds, value) for value in values).items():
        buckets[bucket].inc(count)
