-- rewards: one row for each response with a score from what became of it: outcomes and implicit signals.
-- kinds: outcome, implicit
--
-- The score is the sum of weight times value over the signals as they stand now, kept within -1 and 1. The value of an
-- implicit signal is 1; of an outcome 1 when it is true, -1 when it is false, and a number kept within -1 and 1. Weights
-- come from the settings, by name (implicit.copied, outcome.ticket_solved). An outcome of a conversation is one of each of
-- its responses that was made before. left_out is NULL for an example; otherwise one of the reasons in views.sql, or:
--
--     no_weight   the settings give this signal no weight
--
-- label is good, bad or even, by the score. parts are what the score is made of. Imported responses have no token ids.
-- created_unix_ms is when the last signal was given. Reads also the view arguments (name, value).
-- Parameters: $tenant, $persona, $from_unix_ms.

WITH said AS (
    SELECT
        s.event_id AS feedback_id,
        s.tenant,
        s.persona,
        s.end_user,
        s.created_unix_ms,
        s.retracted,
        s.response_id,
        s.conversation_id,
        concat_ws('.', s.kind, s.name) AS name,
        CASE
            WHEN s.kind = 'implicit' THEN CAST(1 AS DOUBLE)
            WHEN s.outcome_flag IS NOT NULL THEN CASE WHEN s.outcome_flag THEN CAST(1 AS DOUBLE) ELSE CAST(-1 AS DOUBLE) END
            ELSE greatest(CAST(-1 AS DOUBLE), least(CAST(1 AS DOUBLE), s.outcome_number))
        END AS value
    FROM signals AS s
    WHERE s.tenant = $tenant AND s.kind IN ('outcome', 'implicit')
),

about AS (
    SELECT s.*, a.response_id AS answered_id
    FROM said AS s
    LEFT JOIN answers AS a ON a.response_id = s.response_id
    WHERE s.response_id <> ''
    UNION ALL
    SELECT s.*, a.response_id AS answered_id
    FROM said AS s
    LEFT JOIN answers AS a
        ON a.conversation_id = s.conversation_id AND a.tenant = s.tenant AND a.created_unix_ms <= s.created_unix_ms
    WHERE s.response_id = ''
),

judged AS (
    SELECT
        s.feedback_id,
        s.end_user,
        s.created_unix_ms,
        s.name,
        s.value,
        w.value AS weight,
        coalesce(a.response_id, s.response_id) AS response_id,
        a.event_id AS answer_id,
        a.end_user AS author,
        CASE
            WHEN s.created_unix_ms < $from_unix_ms THEN 'outside_window'
            WHEN s.retracted THEN 'retracted'
            WHEN a.response_id IS NULL THEN 'unknown_response'
            WHEN a.tenant <> s.tenant THEN 'other_tenant'
            WHEN a.persona <> $persona THEN 'other_persona'
            WHEN a.unusable IS NOT NULL THEN a.unusable
            WHEN coalesce(w.value, 0) = 0 THEN 'no_weight'
        END AS left_out
    FROM about AS s
    LEFT JOIN answers AS a ON a.response_id = s.answered_id
    LEFT JOIN arguments AS w ON w.name = s.name
    WHERE CASE WHEN s.persona <> '' THEN s.persona ELSE a.persona END = $persona
),

-- Decimals, so that a sum does not depend on its order.
scored AS (
    SELECT
        response_id, answer_id, author,
        CAST(sum(CAST(weight * value AS DECIMAL(18, 6))) AS DOUBLE) AS total,
        list_sort(list(struct_pack(name := name, value := value, weight := weight, feedback_id := feedback_id))) AS parts,
        list_sort(list(feedback_id)) AS feedback_ids,
        list_sort(list(end_user)) AS givers,
        max(created_unix_ms) AS created_unix_ms
    FROM judged
    WHERE left_out IS NULL
    GROUP BY response_id, answer_id, author
),

found AS (
    SELECT
        CAST(NULL AS VARCHAR) AS left_out, response_id, answer_id, author,
        greatest(CAST(-1 AS DOUBLE), least(CAST(1 AS DOUBLE), total)) AS score,
        parts, feedback_ids, givers, created_unix_ms
    FROM scored
    UNION ALL
    SELECT left_out, response_id, answer_id, author, NULL, NULL, [feedback_id], [end_user], created_unix_ms
    FROM judged
    WHERE left_out IS NOT NULL
)

SELECT
    f.left_out,
    left(sha256(concat_ws('/', 'rewards', f.response_id, array_to_string(f.feedback_ids, '/'))), 32) AS example_id,
    CASE WHEN f.score > 0 THEN 'good' WHEN f.score < 0 THEN 'bad' ELSE 'even' END AS label,
    CAST(1 AS DOUBLE) AS weight,
    list_concat(f.givers, [f.author]) AS people,
    f.givers,
    f.feedback_ids,
    [f.response_id] AS response_ids,
    f.response_id,
    r.persona,
    r.persona_version,
    r.policy_id,
    r.conversation_id,
    r.turn,
    r.messages,
    r.tools,
    [
        struct_pack(
            role := 'assistant', content := r.text, tool_calls := r.tool_calls, tool_call_id := '', reasoning := r.reasoning
        )
    ] AS completion,
    f.score,
    f.parts,
    r.prompt_token_ids,
    r.output_token_ids,
    r.output_logprobs,
    r.logprobs_mode,
    r.base_model_hash,
    r.chat_template_hash,
    f.created_unix_ms
FROM responses AS r
RIGHT JOIN found AS f ON r.event_id = CASE WHEN f.left_out IS NULL THEN f.answer_id END
