"""Lineage: what was made of what, as the receipts' index has it.

    policy -> response -> feedback -> example -> dataset -> policy -> ...

Each arrow goes from what something was made of to what it went into. Nothing of another tenant is met on the way.
"""

import sqlite3
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from attune.errors import FailedPrecondition, InvalidInput, NotFound
from attune.ids import BASE_POLICY
from attune.v1 import dataset_pb2

MOST_NODES = 500
MOST_COUNTED = 10_000
MOST_NEIGHBOURS = 1000
MOST_VISITED = 20_000

_Node = dataset_pb2.LineageNode
_RESPONSE, _FEEDBACK, _EXAMPLE, _DATASET, _POLICY = (
    _Node.KIND_RESPONSE,
    _Node.KIND_FEEDBACK,
    _Node.KIND_EXAMPLE,
    _Node.KIND_DATASET,
    _Node.KIND_POLICY,
)
_SHORTEST_PREFIX = 6
_PASSED = {None: "the gate has not spoken", 0: "the gate refused it", 1: "the gate passed it"}

# A plus keeps SQLite from looking up by the tenant: there are few, and each index that begins with it would do.
ABOUT = {
    _RESPONSE: """
        SELECT response_id, created_unix_ms, persona, source FROM responses
        WHERE +tenant = :tenant AND response_id = :id ORDER BY created_unix_ms, event_id LIMIT 1""",
    _FEEDBACK: """
        SELECT event_id, created_unix_ms, kind, name FROM feedback WHERE +tenant = :tenant AND event_id = :id""",
    _EXAMPLE: """
        SELECT e.example_id, 0, d.recipe, d.persona FROM examples AS e
        JOIN contents AS c ON c.example = e.number JOIN datasets AS d ON d.number = c.dataset
        WHERE +d.tenant = :tenant AND e.example_id = :id LIMIT 1""",
    _DATASET: """
        SELECT dataset_id, created_unix_ms, recipe, persona FROM datasets
        WHERE +tenant = :tenant AND dataset_id >= :id AND dataset_id < :id || 'g' ORDER BY dataset_id LIMIT 2""",
    _POLICY: """
        SELECT policy_id, created_unix_ms, persona, passed FROM policies
        WHERE +tenant = :tenant AND policy_id = :id""",
}
_EXAMPLE_OF = "SELECT number FROM examples WHERE example_id = :id"
_FEEDBACK_OF = "SELECT number FROM feedback WHERE event_id = :id AND +tenant = :tenant"
# Each gives ids of one kind. An example's own responses, and a response's own examples, are those without feedback
# between the two.
MADE_OF = {
    _RESPONSE: [
        (
            _POLICY,
            """SELECT DISTINCT policy_id FROM responses
            WHERE +tenant = :tenant AND response_id = :id AND policy_id <> ''""",
        )
    ],
    _FEEDBACK: [
        (
            _RESPONSE,
            f"""SELECT response_id FROM ranked WHERE feedback IN ({_FEEDBACK_OF})
            UNION SELECT response_id FROM feedback WHERE event_id = :id AND +tenant = :tenant AND response_id <> ''""",
        )
    ],
    _EXAMPLE: [
        (
            _FEEDBACK,
            f"""SELECT f.event_id FROM example_feedback AS e JOIN feedback AS f ON f.number = e.feedback
            WHERE e.example IN ({_EXAMPLE_OF}) AND +f.tenant = :tenant ORDER BY f.number""",
        ),
        (
            _RESPONSE,
            f"""SELECT response_id FROM example_responses WHERE example IN ({_EXAMPLE_OF})
            AND response_id NOT IN (
                SELECT f.response_id FROM example_feedback AS e JOIN feedback AS f ON f.number = e.feedback
                WHERE e.example IN ({_EXAMPLE_OF})
            )""",
        ),
    ],
    _DATASET: [
        (
            _EXAMPLE,
            """SELECT e.example_id FROM contents AS c JOIN examples AS e ON e.number = c.example
            WHERE c.dataset IN (SELECT number FROM datasets WHERE dataset_id = :id AND +tenant = :tenant)""",
        )
    ],
    _POLICY: [
        (
            _DATASET,
            """SELECT m.dataset_id FROM policy_datasets AS m JOIN policies AS p ON p.policy_id = m.policy_id
            WHERE m.policy_id = :id AND +p.tenant = :tenant ORDER BY m.dataset_id""",
        ),
        (
            _POLICY,
            """SELECT parent_policy_id FROM policies
            WHERE policy_id = :id AND +tenant = :tenant AND parent_policy_id <> ''""",
        ),
    ],
}
WENT_INTO = {
    _RESPONSE: [
        (
            _FEEDBACK,
            """SELECT event_id FROM feedback WHERE +tenant = :tenant AND number IN (
                SELECT number FROM feedback WHERE tenant = :tenant AND response_id = :id
                UNION SELECT feedback FROM ranked WHERE response_id = :id
            ) ORDER BY number""",
        ),
        (
            _EXAMPLE,
            """SELECT e.example_id FROM example_responses AS r JOIN examples AS e ON e.number = r.example
            WHERE r.response_id = :id AND EXISTS (
                SELECT 1 FROM contents AS c JOIN datasets AS d ON d.number = c.dataset
                WHERE c.example = r.example AND +d.tenant = :tenant
            ) AND NOT EXISTS (
                SELECT 1 FROM example_feedback AS x JOIN feedback AS f ON f.number = x.feedback
                WHERE x.example = r.example AND +f.tenant = :tenant AND f.response_id = :id
            )""",
        ),
    ],
    _FEEDBACK: [
        (
            _EXAMPLE,
            f"""SELECT e.example_id FROM example_feedback AS x JOIN examples AS e ON e.number = x.example
            WHERE x.feedback IN ({_FEEDBACK_OF})""",
        )
    ],
    _EXAMPLE: [
        (
            _DATASET,
            f"""SELECT d.dataset_id FROM contents AS c JOIN datasets AS d ON d.number = c.dataset
            WHERE c.example IN ({_EXAMPLE_OF}) AND +d.tenant = :tenant AND d.whole
            ORDER BY d.created_unix_ms DESC, d.dataset_id""",
        )
    ],
    _DATASET: [
        (
            _POLICY,
            """SELECT m.policy_id FROM policy_datasets AS m JOIN policies AS p ON p.policy_id = m.policy_id
            WHERE m.dataset_id = :id AND +p.tenant = :tenant ORDER BY m.policy_id""",
        )
    ],
    _POLICY: [
        (
            _POLICY,
            "SELECT policy_id FROM policies WHERE +tenant = :tenant AND parent_policy_id = :id ORDER BY policy_id",
        ),
        (_RESPONSE, "SELECT response_id FROM responses WHERE tenant = :tenant AND policy_id = :id"),
    ],
}
_WAYS: Mapping[str, Any] = {"made_of": MADE_OF, "went_into": WENT_INTO}


class Thing(NamedTuple):
    """Something that has a lineage."""

    kind: _Node.Kind.ValueType
    id: str


@dataclass
class Lineage:
    """What one tenant may know, in one consistent state of the index."""

    connection: sqlite3.Connection
    tenant: str
    _seen: set[Thing] = field(default_factory=set)

    def find(self, text: str) -> Thing:
        """What has that id. Raises NotFound, and InvalidInput for a beginning that fits several datasets."""
        if text == BASE_POLICY:
            return Thing(_POLICY, text)
        for kind in (_RESPONSE, _FEEDBACK, _POLICY, _EXAMPLE):
            if self._about(Thing(kind, text)):
                return Thing(kind, text)
        if text.startswith("d-") and len(text) >= _SHORTEST_PREFIX:
            found = self._about(Thing(_DATASET, text))
            if len(found) > 1:
                raise InvalidInput("several datasets begin like that", field="id")
            if found:
                return Thing(_DATASET, found[0][0])
        raise NotFound("nothing has that id; what was given a moment ago may not be in the lake yet", field="id")

    def tree(self, root: Thing, depth: int, width: int) -> dataset_pb2.LineageNode:
        """Both ways, the nearest first: what is not shown is counted. Raises as `find` does."""
        node = self._node(root)
        nodes = 1
        waiting = deque((node, root, way, depth) for way in _WAYS)
        self._seen = {root}
        while waiting:
            parent, thing, way, steps = waiting.popleft()
            for kind, query in _WAYS[way][thing.kind]:
                room = min(width, MOST_NODES - nodes) if steps else 0
                shown = self._ids(query, thing, room)
                for each in (Thing(kind, one) for one in shown):
                    child = getattr(parent, way).add()
                    child.CopyFrom(self._node(each))
                    if each in self._seen:
                        child.repeated = True
                    else:
                        self._seen.add(each)
                        waiting.append((child, each, way, steps - 1))
                nodes += len(shown)
                self._count_rest(parent, way, query, thing, len(shown))
        return node

    def path(self, start: Thing, end: Thing) -> dataset_pb2.LineageNode:
        """From one to the other, whichever was made of the other. Raises FailedPrecondition when neither was."""
        for way, steps in (("went_into", self._steps(start, end)), ("made_of", self._steps(end, start)[::-1])):
            if steps:
                root = node = self._node(steps[0])
                for thing in steps[1:]:
                    child = getattr(node, way).add()
                    child.CopyFrom(self._node(thing))
                    node = child
                return root
        raise FailedPrecondition("as far as was looked, neither was made of the other", field="to_id")

    def _steps(self, start: Thing, end: Thing) -> list[Thing]:
        """A way down from start to end; none found: empty. From both ends, for each way has its wide steps."""
        if start == end:
            return [start]
        down: dict[Thing, Thing | None] = {start: None}
        up: dict[Thing, Thing | None] = {end: None}
        edges = {"went_into": deque([start]), "made_of": deque([end])}
        while any(edges.values()) and len(down) + len(up) < MOST_VISITED:
            for way, ours, others in (("went_into", down, up), ("made_of", up, down)):
                if not edges[way]:
                    continue
                thing = edges[way].popleft()
                for kind, query in _WAYS[way][thing.kind]:
                    for one in self._ids(query, thing, MOST_NEIGHBOURS):
                        each = Thing(kind, one)
                        if each in ours:
                            continue
                        ours[each] = thing
                        if each in others:
                            return [*_back(down, each)[::-1], *_back(up, each)[1:]]
                        edges[way].append(each)
        return []

    def _ids(self, query: str, thing: Thing, most: int) -> list[str]:
        found = self.connection.execute(f"{query} LIMIT :most", {"tenant": self.tenant, "id": thing.id, "most": most})
        return [one for (one,) in found]

    def _count_rest(self, node: dataset_pb2.LineageNode, way: str, query: str, thing: Thing, shown: int) -> None:
        counted = self.connection.execute(
            f"SELECT count(*) FROM ({query} LIMIT :most)",
            {"tenant": self.tenant, "id": thing.id, "most": MOST_COUNTED + shown},
        ).fetchone()[0]
        field_name = f"{way}_left_out"
        setattr(node, field_name, getattr(node, field_name) + max(0, counted - shown))

    def _about(self, thing: Thing) -> list[tuple[Any, ...]]:
        return self.connection.execute(ABOUT[thing.kind], {"tenant": self.tenant, "id": thing.id}).fetchall()

    def _node(self, thing: Thing) -> dataset_pb2.LineageNode:
        if thing == Thing(_POLICY, BASE_POLICY):
            return _Node(kind=_POLICY, id=BASE_POLICY, detail="the model that training starts from")
        found = self._about(thing)
        if not found:  # a response that is not in the lake yet, a dataset or a policy that was deleted
            return _Node(kind=thing.kind, id=thing.id, detail="not there (any more)")
        _, created, first, second = found[0]
        return _Node(kind=thing.kind, id=thing.id, detail=_detail(thing.kind, first, second), created_unix_ms=created)


def _detail(kind: int, first: str, second: Any) -> str:
    if kind == _POLICY:
        return f"{first}; {_PASSED[second]}"
    if kind == _RESPONSE:
        return first if second == "served" else f"{first}; {second}"
    if kind == _FEEDBACK:
        return f"{first} {second}".rstrip()
    return f"{first} of {second}"


def _back(came_from: Mapping[Thing, Thing | None], end: Thing) -> list[Thing]:
    steps = [end]
    while (before := came_from[steps[-1]]) is not None:
        steps.append(before)
    return steps
