"""What a feedback request may say, and what of it is kept."""

import hashlib
import math
import re
from collections.abc import Collection

from attune.chat.limits import check_length
from attune.chat.words import IMPLICIT_SIGNALS, THUMBS
from attune.errors import InvalidInput
from attune.v1 import event_pb2, feedback_pb2

MAX_COMMENT_CHARACTERS = 4000
MAX_TAGS = 16
MAX_CORRECTION_CHARACTERS = 65_536
MAX_GUIDELINE_CHARACTERS = 64
MAX_REVISION = 2**31 - 1
RANKED = range(2, 17)

_OUTCOME_NAME = re.compile(r"[a-z0-9_]{1,64}")

KINDS = ("thumb", "rating", "ranking", "correction", "annotation", "outcome", "implicit", "remark")


def check_request(request: feedback_pb2.SubmitFeedbackRequest, tags: Collection[str]) -> str:
    """The kind of signal; raises InvalidInput, with the value and the limit, for what cannot be kept.

    `tags` is the vocabulary. A retraction needs of its signal only what names it. Whom it is about is not looked at.
    """
    kind = request.WhichOneof("signal")
    if kind is None:
        raise InvalidInput(f"there is no signal; it must be one of {', '.join(KINDS)}", field="signal")
    check_length(request.comment, MAX_COMMENT_CHARACTERS, "comment")
    check_length(request.guideline_version, MAX_GUIDELINE_CHARACTERS, "guideline_version")
    if request.revision > MAX_REVISION:
        raise InvalidInput(f"revision is {request.revision}; it must be at most {MAX_REVISION}", field="revision")
    if request.author not in event_pb2.Author.values():
        raise InvalidInput(f"author is {request.author}; it must be 1 (end user), 2 or 3", field="author")
    if request.HasField("propensity") and not 0 < request.propensity <= 1:
        raise InvalidInput(
            f"propensity is {request.propensity:g}; it must be above 0 and at most 1", field="propensity"
        )
    _check_tags(request.tags, tags)
    # What names a signal is needed to take it back, too.
    if not request.retracted or kind in ("ranking", "outcome", "annotation", "implicit"):
        _CHECKS[kind](request)
    return kind


def signal_name(event: event_pb2.FeedbackEvent) -> str:
    """What tells this signal apart from others of its kind; see event.proto."""
    match event.WhichOneof("signal"):
        case "outcome":
            return event.outcome.name
        case "implicit":
            return IMPLICIT_SIGNALS.of[event.implicit]
        case "annotation":
            return f"{event.annotation.start}:{event.annotation.end}"
        case "ranking":
            ids = "\n".join(sorted(entry.response_id for entry in event.ranking.entries))
            return hashlib.sha256(ids.encode()).hexdigest()[:32]
    return ""


def signal_label(event: event_pb2.FeedbackEvent) -> str:
    """Of a closed set, for the metric."""
    kind = event.WhichOneof("signal") or ""
    if event.retracted:
        return "retracted"
    return f"thumb_{THUMBS.of[event.thumb]}" if kind == "thumb" else kind


def _check_tags(given: Collection[str], known: Collection[str]) -> None:
    if len(given) > MAX_TAGS:
        raise InvalidInput(f"there are {len(given)} tags; at most {MAX_TAGS} are taken", field="tags")
    for index, tag in enumerate(given):
        if tag not in known:
            raise InvalidInput(
                f"tags[{index}] is not in the vocabulary: {', '.join(sorted(known)) or 'it is empty'}",
                field=f"tags[{index}]",
            )


def _check_thumb(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    if request.thumb not in THUMBS.of:
        raise InvalidInput(f"thumb is {request.thumb}; it must be THUMB_UP (1) or THUMB_DOWN (2)", field="thumb")


def _check_rating(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    if not 1 <= request.rating <= 5:
        raise InvalidInput(f"rating is {request.rating}; it must be 1 to 5", field="rating")


def _check_ranking(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    entries = request.ranking.entries
    if len(entries) not in RANKED:
        raise InvalidInput(
            f"the ranking has {len(entries)} entries; it must have {RANKED.start} to {RANKED.stop - 1}",
            field="ranking.entries",
        )
    for index, entry in enumerate(entries):
        if not 1 <= entry.rank < RANKED.stop:
            raise InvalidInput(
                f"ranking.entries[{index}].rank is {entry.rank}; it must be 1 to {RANKED.stop - 1}",
                field=f"ranking.entries[{index}].rank",
            )


def _check_correction(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    text = request.correction.text
    check_length(text, MAX_CORRECTION_CHARACTERS, "correction.text")
    if not text:
        raise InvalidInput("correction.text is empty", field="correction.text")


def _check_annotation(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    annotation = request.annotation
    if annotation.start >= annotation.end:
        raise InvalidInput(
            f"the annotation goes from {annotation.start} to {annotation.end}; it must end after it starts",
            field="annotation.end",
        )
    check_length(annotation.note, MAX_COMMENT_CHARACTERS, "annotation.note")


def _check_outcome(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    outcome = request.outcome
    if not _OUTCOME_NAME.fullmatch(outcome.name):
        raise InvalidInput(
            "outcome.name must be 1 to 64 lower-case letters, digits and underscores", field="outcome.name"
        )
    if request.retracted:
        return
    if outcome.WhichOneof("value") is None:
        raise InvalidInput("the outcome has no value; it must be flag or number", field="outcome")
    if not math.isfinite(outcome.number):
        raise InvalidInput(f"outcome.number is {outcome.number}; it must be finite", field="outcome.number")


def _check_implicit(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    if request.implicit not in IMPLICIT_SIGNALS.of:
        raise InvalidInput(f"implicit is {request.implicit}; it must be 1 to {len(IMPLICIT_SIGNALS)}", field="implicit")


def _check_remark(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    if not request.comment and not request.tags:
        raise InvalidInput("the remark has neither comment nor tags", field="comment")


_CHECKS = {
    "thumb": _check_thumb,
    "rating": _check_rating,
    "ranking": _check_ranking,
    "correction": _check_correction,
    "annotation": _check_annotation,
    "outcome": _check_outcome,
    "implicit": _check_implicit,
    "remark": _check_remark,
}
