"""What a file says of answers, and the feedback that it becomes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attune.chat.words import AUTHORS, IMPLICIT_SIGNALS, THUMBS
from attune.errors import InvalidInput
from attune.v1 import event_pb2, feedback_pb2

_SIGNALS = ("thumb", "rating", "ranks", "correction", "annotation", "outcome", "implicit")


@dataclass(frozen=True)
class Said:
    """One feedback on answers of a record, by their places; of a ranking `ranks` has the rank of each."""

    answers: Sequence[int]
    request: feedback_pb2.SubmitFeedbackRequest
    ranks: Sequence[int] = ()

    def about(self, import_id: str, response_ids: Sequence[str], nobody: str) -> feedback_pb2.SubmitFeedbackRequest:
        """To be sent; `nobody` is the person where the file names none.

        Its id follows from what it says, so that it is taken once however often it is sent.
        """
        request = feedback_pb2.SubmitFeedbackRequest()
        request.CopyFrom(self.request)
        request.end_user_id = request.end_user_id or nobody
        if self.ranks:
            request.ranking.SetInParent()
            for place, rank in zip(self.answers, self.ranks, strict=True):
                request.ranking.entries.add(response_id=response_ids[place], rank=rank)
        else:
            request.response_id = response_ids[self.answers[0]]
        content = request.SerializeToString(deterministic=True)
        request.client_feedback_id = f"{import_id[-95:]}/{hashlib.sha256(content).hexdigest()[:32]}"
        return request


def short_forms(answers: Sequence[Mapping[str, Any]], end_user_id: str) -> list[Said]:
    """What stands with the answers themselves: ranks, if each has one, ratings and thumbs."""
    said = [
        Said((place,), read_signal({name: answer[name]}, end_user_id))
        for place, answer in enumerate(answers)
        for name in ("rating", "thumb")
        if name in answer
    ]
    if len(answers) > 1 and all("rank" in answer for answer in answers):
        said.append(ranking([answer["rank"] for answer in answers], end_user_id))
    return said


def ranking(ranks: Sequence[int], end_user_id: str) -> Said:
    """Of all answers, by their places."""
    return Said(range(len(ranks)), read_signal({}, end_user_id), ranks)


def read_said(row: Mapping[str, Any], answers: int) -> Said:
    """One of a line's `feedback`, on a record of so many answers. Raises InvalidInput."""
    given = [name for name in _SIGNALS if row.get(name) is not None]
    if len(given) > 1:
        raise InvalidInput(f"a feedback has several signals: {', '.join(given)}")
    places = row.get("answers", [0])
    if not places or not all(isinstance(place, int) and 0 <= place < answers for place in places):
        raise InvalidInput(f"a feedback is about answers that are not there; they are 0 to {answers - 1}")
    ranks = row.get("ranks") or ()
    if len(ranks) != (len(places) if ranks else 0) or (not ranks and len(places) > 1):
        raise InvalidInput("a ranking has one rank for each of its answers, and all other feedback one answer")
    return Said(places, read_signal(row, row.get("end_user_id", "")), ranks)


def read_signal(row: Mapping[str, Any], end_user_id: str) -> feedback_pb2.SubmitFeedbackRequest:
    """Written as in a feedback request over HTTP."""
    request = feedback_pb2.SubmitFeedbackRequest(
        end_user_id=end_user_id,
        author=_one_of(AUTHORS, row.get("author", "end_user"), "author"),
        comment=row.get("comment", ""),
        tags=row.get("tags", ()),
        guideline_version=row.get("guideline_version", ""),
        propensity=row.get("propensity"),
    )
    if row.get("thumb") is not None:
        request.thumb = _one_of(THUMBS, row["thumb"], "thumb")
    elif row.get("rating") is not None:
        request.rating = row["rating"]
    elif row.get("correction") is not None:
        request.correction.text = row["correction"]
    elif row.get("annotation") is not None:
        request.annotation.CopyFrom(event_pb2.Annotation(**row["annotation"]))
    elif row.get("outcome") is not None:
        name, value = row["outcome"]["name"], row["outcome"]["value"]
        kind = {"flag": value} if isinstance(value, bool) else {"number": value}
        request.outcome.CopyFrom(event_pb2.Outcome(name=name, **kind))
    elif row.get("implicit") is not None:
        request.implicit = _one_of(IMPLICIT_SIGNALS, row["implicit"], "implicit")
    else:
        request.remark.SetInParent()  # a ranking takes its place later
    return request


def _one_of(names: Mapping[str, Any], name: Any, field: str) -> Any:
    if name not in names:
        raise InvalidInput(f"{field} must be one of {', '.join(names)}")
    return names[name]
