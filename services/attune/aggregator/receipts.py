"""Receipts: what became of feedback, as the index has it."""

import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from attune.lake.snapshot import SENT_AGAIN_WITHIN_MS
from attune.v1 import dataset_pb2

MOST_RECEIPTS = 200
MOST_USES = 100

# An id that is younger than the youngest feedback in the lake, or than this, may still be on its way.
_FRESH_MS = 600_000
_CLOCKS_APART_MS = 60_000
_FEEDBACK_ID = re.compile(r"[0-9a-f]{12}7[0-9a-f]{19}")

_NOTES = {
    "response_not_stored": "the response is not in the lake; where it comes later, the feedback counts from then on",
    "different_prompts": "the ranked responses do not answer one prompt",
    "repeated_feedback": "the same feedback came twice, through another server perhaps; it counts once",
    "repeated_request": "two servers answered the same request; the answer that was made first counts for datasets: {}",
    "other_author": "who gave it is not whom the response was given to",
    "other_persona": "the response is another persona's than the feedback says",
    "no_dataset": "in no dataset yet: none was built since it came, or no recipe that is built here reads it",
}
_NOT_STORED = dataset_pb2.Receipt.STATE_NOT_STORED
# That a response is another tenant's is not told apart from that there is none.
_HIDDEN = {"other_tenant": "unknown_response"}

_FEEDBACK = """
SELECT number, event_id, client_feedback_id, tenant, response_id, conversation_id, persona, end_user, author, kind,
    name, revision, retracted, created_unix_ms
FROM feedback WHERE tenant = :tenant AND {}
ORDER BY created_unix_ms DESC, event_id DESC LIMIT :most
"""
_ON_RESPONSE = """
number IN (
    SELECT number FROM feedback WHERE tenant = :tenant AND response_id = :response_id
    UNION SELECT feedback FROM ranked WHERE response_id = :response_id
)
"""
_LAST_WORD = """
SELECT event_id, revision, retracted, client_feedback_id FROM feedback
WHERE tenant = :tenant AND response_id = :response_id AND kind = :kind AND name = :name AND author = :author
    AND end_user = :end_user AND (response_id <> '' OR conversation_id = :conversation_id)
ORDER BY revision DESC, created_unix_ms DESC, event_id DESC LIMIT 1
"""
_RESPONSE = """
SELECT tenant, persona, policy_id, end_user, source, request_group, client_request_id, prompt FROM responses
WHERE response_id = ? AND tenant = ? ORDER BY created_unix_ms, event_id LIMIT 1
"""
# As responses_repeated in lake/snapshot.py.
_COUNTS_INSTEAD = """
WITH answered AS (
    SELECT request_group, min(created_unix_ms) AS made, min(response_id) AS response_id FROM responses
    WHERE tenant = :tenant AND client_request_id = :client_request_id AND client_request_id <> ''
        AND source = 'served' AND prompt = :prompt
    GROUP BY request_group HAVING NOT max(finish_reason = 'aborted')
),
placed AS (
    SELECT *, lag(made) OVER same AS before, first_value(response_id) OVER same AS counts
    FROM answered WINDOW same AS (ORDER BY made, request_group)
)
SELECT counts FROM placed WHERE request_group = :request_group AND made - before <= :within_ms
"""
_DATASETS = """
SELECT d.dataset_id, d.recipe, u.split, d.created_unix_ms FROM uses AS u JOIN datasets AS d ON d.number = u.dataset
WHERE u.feedback = ? AND d.whole ORDER BY d.created_unix_ms DESC, d.dataset_id LIMIT ?
"""
# In several of a policy's datasets: that it learned from it says more.
_POLICIES = """
SELECT p.policy_id, max(u.split), p.passed, p.created_unix_ms
FROM uses AS u
JOIN datasets AS d ON d.number = u.dataset
JOIN policy_datasets AS m ON m.dataset_id = d.dataset_id
JOIN policies AS p ON p.policy_id = m.policy_id
WHERE u.feedback = ? AND d.whole
GROUP BY p.policy_id ORDER BY p.created_unix_ms DESC, p.policy_id DESC LIMIT ?
"""
_LEFT_OUT = """
SELECT b.recipe, l.reason FROM left_out AS l JOIN builds AS b ON b.number = l.build
WHERE l.feedback = ? ORDER BY b.recipe, l.reason
"""

_NEWEST = "SELECT max(created_unix_ms) FROM (SELECT created_unix_ms FROM feedback ORDER BY number DESC LIMIT 1000)"

Sentences = Callable[[str, str], str]
"""From a recipe and a reason to a sentence."""


@dataclass(frozen=True)
class Question:
    """Whose receipts are asked for. Of `end_user`, when it is given, only what that person said as an end user."""

    tenant: str
    feedback_id: str = ""
    client_feedback_id: str = ""
    response_id: str = ""
    end_user: str | None = None


def answer(
    connection: sqlite3.Connection, question: Question, sentences: Sentences, now_unix_ms: int
) -> dataset_pb2.GetReceiptsResponse:
    """What the index knows; no receipts where it knows nothing."""
    found = dataset_pb2.GetReceiptsResponse()
    if question.response_id:
        found.response.CopyFrom(_response_state(connection, question))
    found.receipts.extend(_receipt(connection, row, sentences) for row in _feedback(connection, question))
    if question.feedback_id and not found.receipts and _may_come(connection, question.feedback_id, now_unix_ms):
        found.receipts.add(feedback_id=question.feedback_id, state=_NOT_STORED)
    return found


def _feedback(connection: sqlite3.Connection, question: Question) -> list[Mapping[str, Any]]:
    if question.feedback_id:
        condition = "event_id = :feedback_id"
    elif question.client_feedback_id:
        condition = "client_feedback_id = :client_feedback_id"
    else:
        condition = _ON_RESPONSE
    if question.end_user is not None:
        condition += " AND end_user = :end_user AND author = 'end_user'"
    return _rows(connection, _FEEDBACK.format(condition), {**vars(question), "most": MOST_RECEIPTS})


def _receipt(connection: sqlite3.Connection, row: Mapping[str, Any], sentences: Sentences) -> dataset_pb2.Receipt:
    receipt = dataset_pb2.Receipt(
        feedback_id=row["event_id"],
        client_feedback_id=row["client_feedback_id"],
        response_id=row["response_id"],
        conversation_id=row["conversation_id"],
        kind=row["kind"],
        name=row["name"],
        revision=row["revision"],
        created_unix_ms=row["created_unix_ms"],
        state=dataset_pb2.Receipt.STATE_COUNTS,
    )
    notes = _notes_on_responses(connection, row)
    last = _rows(connection, _LAST_WORD, row)[0]
    if last["event_id"] != row["event_id"]:
        receipt.superseded_by = last["event_id"]
        receipt.state = dataset_pb2.Receipt.STATE_SUPERSEDED
        same_id = bool(row["client_feedback_id"]) and row["client_feedback_id"] == last["client_feedback_id"]
        if same_id and row["revision"] == last["revision"]:
            receipt.state = dataset_pb2.Receipt.STATE_REPEATED
            notes["repeated_feedback"] = ""
    if last["retracted"]:
        receipt.state = dataset_pb2.Receipt.STATE_RETRACTED
    _add_uses(connection, receipt, row["number"], sentences)
    counts = receipt.state == dataset_pb2.Receipt.STATE_COUNTS
    if counts and not receipt.datasets and not receipt.left_out:
        notes["no_dataset"] = ""
    receipt.notes.extend(_note(code, value) for code, value in notes.items())
    return receipt


def _add_uses(connection: sqlite3.Connection, receipt: dataset_pb2.Receipt, number: int, sentences: Sentences) -> None:
    for dataset_id, recipe, split, created in connection.execute(_DATASETS, (number, MOST_USES)):
        receipt.datasets.add(dataset_id=dataset_id, recipe=recipe, split=split, created_unix_ms=created)
    for policy_id, split, passed, created in connection.execute(_POLICIES, (number, MOST_USES)):
        verdict = None if passed is None else bool(passed)
        receipt.policies.add(policy_id=policy_id, split=split, passed=verdict, created_unix_ms=created)
    for recipe, word in connection.execute(_LEFT_OUT, (number,)):
        reason = _HIDDEN.get(word, word)
        receipt.left_out.add(recipe=recipe, reason=reason, sentence=sentences(recipe, reason))


def _notes_on_responses(connection: sqlite3.Connection, row: Mapping[str, Any]) -> dict[str, str]:
    """What the lake knows only when feedback and responses are both there; codes, and what a sentence has to name."""
    if not row["response_id"]:  # a conversation's outcome
        return {}
    ranked = [
        one for (one,) in connection.execute("SELECT response_id FROM ranked WHERE feedback = ?", (row["number"],))
    ]
    notes: dict[str, str] = {}
    prompts = set()
    for response_id in ranked or [row["response_id"]]:
        response = _response(connection, response_id, row["tenant"])
        if response is None:
            notes["response_not_stored"] = ""
            continue
        prompts.add(response["prompt"])
        notes |= _repetition(connection, response)
        if row["persona"] and response["persona"] != row["persona"]:
            notes["other_persona"] = ""
        known = row["author"] == "end_user" and row["end_user"] and response["end_user"]
        if known and row["end_user"] != response["end_user"]:
            notes["other_author"] = ""
    # What came from elsewhere has no tokens to be compared with a served prompt's.
    if any(len({prompt for prompt in prompts if prompt[:1] == kind}) > 1 for kind in (b"t", b"m")):
        notes["different_prompts"] = ""
    return notes


def _response_state(connection: sqlite3.Connection, question: Question) -> dataset_pb2.ResponseState:
    state = dataset_pb2.ResponseState(response_id=question.response_id)
    response = _response(connection, question.response_id, question.tenant)
    if response is None:
        return state
    state.stored = True
    state.persona, state.policy_id = response["persona"], response["policy_id"]
    state.notes.extend(_note(code, value) for code, value in _repetition(connection, response).items())
    return state


def _response(connection: sqlite3.Connection, response_id: str, tenant: str) -> Mapping[str, Any] | None:
    found = _rows(connection, _RESPONSE, (response_id, tenant))
    return found[0] if found else None


def _repetition(connection: sqlite3.Connection, response: Mapping[str, Any]) -> dict[str, str]:
    if response["source"] != "served":
        return {}
    instead = connection.execute(_COUNTS_INSTEAD, {**response, "within_ms": SENT_AGAIN_WITHIN_MS}).fetchone()
    return {"repeated_request": instead[0]} if instead else {}


def _may_come(connection: sqlite3.Connection, feedback_id: str, now_unix_ms: int) -> bool:
    """Whether an id under which the tenant has nothing is young enough to be on its way, whosever it may be."""
    if not _FEEDBACK_ID.fullmatch(feedback_id):
        return False
    made = int(feedback_id[:12], 16)
    newest = connection.execute(_NEWEST).fetchone()[0] or 0
    return min(newest, now_unix_ms - _FRESH_MS) <= made <= now_unix_ms + _CLOCKS_APART_MS


def _note(code: str, value: str) -> dataset_pb2.Note:
    return dataset_pb2.Note(code=code, sentence=_NOTES[code].format(value))


def _rows(connection: sqlite3.Connection, query: str, arguments: Any) -> list[Mapping[str, Any]]:
    cursor = connection.execute(query, arguments)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
