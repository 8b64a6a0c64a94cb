-- recovery: one row for each liked response that came after trouble in its conversation.
-- kinds: thumb, rating
--
-- A response is liked when of what people say of it more is good (a thumb up, four or five stars) than bad (a thumb down,
-- one or two stars). label says what the trouble was:
--
-- tool_error   Of the tool messages that it answers (those since the user last spoke) one reports an error: it has a word
--              for failure in it, or "ok" or "success" that is false. An "error" that is null or empty is none.
-- down_vote    The answer of this conversation that was last judged before it was disliked; failed is that answer.
--
-- left_out is NULL for an example; otherwise, of one signal, one of the reasons in views.sql, or of a response:
--
--     not_served   it was imported or a teacher's: no policy of ours sampled it
--     tie          as much good as bad is said of it
--     disliked     more bad than good is said of it
--     no_trouble   there was nothing to recover from
--
-- feedback_ids and people are of both answers; created_unix_ms is when the last of it was said.
-- Parameters: $tenant, $persona, $from_unix_ms.

WITH judged AS (
    SELECT
        s.event_id AS feedback_id,
        s.end_user,
        s.created_unix_ms,
        s.response_id,
        CASE
            WHEN s.thumb = 'up' OR s.rating >= 4 THEN 1
            WHEN s.thumb = 'down' OR s.rating <= 2 THEN -1
            ELSE 0
        END AS opinion,
        a.event_id AS answer_id,
        a.conversation_id,
        a.turn,
        a.created_unix_ms AS answered_unix_ms,
        a.end_user AS author,
        CASE
            WHEN s.created_unix_ms < $from_unix_ms THEN 'outside_window'
            WHEN s.retracted THEN 'retracted'
            WHEN a.response_id IS NULL THEN 'unknown_response'
            WHEN a.tenant <> s.tenant THEN 'other_tenant'
            WHEN a.persona <> $persona THEN 'other_persona'
            WHEN a.unusable IS NOT NULL THEN a.unusable
            WHEN a.source <> 'served' THEN 'not_served'
        END AS left_out
    FROM signals AS s
    LEFT JOIN answers AS a ON a.response_id = s.response_id
    WHERE
        s.tenant = $tenant AND s.kind IN ('thumb', 'rating')
        AND CASE WHEN s.persona <> '' THEN s.persona ELSE a.persona END = $persona
),

verdicts AS (
    SELECT
        response_id, answer_id, conversation_id, turn, answered_unix_ms, author,
        sum(opinion) AS balance,
        list_sort(list(feedback_id)) AS feedback_ids,
        list_sort(list(end_user)) AS givers,
        max(created_unix_ms) AS created_unix_ms
    FROM judged
    WHERE left_out IS NULL
    GROUP BY response_id, answer_id, conversation_id, turn, answered_unix_ms, author
),

-- Of what was judged either way, in the order of the conversation, the one before.
followed AS (
    SELECT
        response_id,
        lag(balance) OVER spoken AS before_balance,
        lag(answer_id) OVER spoken AS before_id,
        lag(response_id) OVER spoken AS before_response_id,
        lag(feedback_ids) OVER spoken AS before_feedback_ids,
        lag(givers) OVER spoken AS before_givers
    FROM verdicts
    WHERE balance <> 0 AND conversation_id <> ''
    WINDOW spoken AS (PARTITION BY conversation_id ORDER BY turn, answered_unix_ms, response_id)
),

messages AS (
    SELECT r.event_id AS answer_id, u.message.role AS role, u.message.content AS content, u.place
    FROM responses AS r, unnest(r.messages) WITH ORDINALITY AS u (message, place)
    WHERE r.event_id IN (SELECT answer_id FROM verdicts WHERE balance > 0)
),

spoke AS (
    SELECT *, max(CASE WHEN role = 'user' THEN place ELSE -1 END) OVER (PARTITION BY answer_id) AS last_user
    FROM messages
),

tool_errors AS (
    SELECT DISTINCT answer_id
    FROM spoke
    WHERE
        role = 'tool' AND place > last_user
        AND (
            regexp_matches(
                lower(regexp_replace(content, '"errors?" *: *(null|false|0|""|\[\]|\{\})', '', 'g')),
                '(^|[^a-z])(errors?|exception|traceback|fail|failed|failure|timed out|timeout|denied|refused|unavailable|not found)([^a-z]|$)'
            )
            OR regexp_matches(lower(content), '"(ok|success)" *: *false')
        )
),

recovered AS (
    SELECT
        v.*,
        CASE
            WHEN v.balance = 0 THEN 'tie'
            WHEN v.balance < 0 THEN 'disliked'
            WHEN e.answer_id IS NULL AND coalesce(f.before_balance, 0) >= 0 THEN 'no_trouble'
        END AS left_out,
        CASE WHEN e.answer_id IS NOT NULL THEN 'tool_error' ELSE 'down_vote' END AS label,
        CASE WHEN f.before_balance < 0 THEN f.before_id END AS failed_id,
        CASE WHEN f.before_balance < 0 THEN f.before_response_id END AS failed_response_id,
        CASE WHEN f.before_balance < 0 THEN f.before_feedback_ids END AS failed_feedback_ids,
        CASE WHEN f.before_balance < 0 THEN f.before_givers END AS failed_givers
    FROM verdicts AS v
    LEFT JOIN followed AS f ON f.response_id = v.response_id
    LEFT JOIN tool_errors AS e ON e.answer_id = v.answer_id
),

found AS (
    SELECT
        left_out, label, response_id, answer_id, failed_id, author, created_unix_ms,
        CASE
            WHEN left_out IS NULL THEN list_concat(feedback_ids, coalesce(failed_feedback_ids, CAST([] AS VARCHAR[])))
            ELSE feedback_ids
        END AS feedback_ids,
        list_concat(givers, coalesce(failed_givers, CAST([] AS VARCHAR[]))) AS givers,
        CASE
            WHEN left_out IS NULL AND failed_response_id IS NOT NULL THEN [response_id, failed_response_id]
            ELSE [response_id]
        END AS response_ids
    FROM recovered
    UNION ALL
    SELECT
        left_out, '', response_id, answer_id, NULL, author, created_unix_ms,
        [feedback_id], [end_user], [response_id]
    FROM judged
    WHERE left_out IS NOT NULL
)

SELECT
    f.left_out,
    left(sha256(concat_ws('/', 'recovery', f.response_id, array_to_string(f.feedback_ids, '/'))), 32) AS example_id,
    f.label,
    CAST(1 AS DOUBLE) AS weight,
    list_concat(f.givers, [f.author]) AS people,
    f.givers,
    f.feedback_ids,
    f.response_ids,
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
    list_filter(
        [
            struct_pack(
                role := 'assistant',
                content := b.text,
                tool_calls := b.tool_calls,
                tool_call_id := '',
                reasoning := b.reasoning
            )
        ],
        lambda x: b.event_id IS NOT NULL
    ) AS failed,
    r.prompt_token_ids,
    r.output_token_ids,
    r.output_logprobs,
    r.logprobs_mode,
    r.base_model_hash,
    r.chat_template_hash,
    f.created_unix_ms
FROM responses AS b
RIGHT JOIN (
    responses AS r
    RIGHT JOIN found AS f ON r.event_id = CASE WHEN f.left_out IS NULL THEN f.answer_id END
) ON b.event_id = CASE WHEN f.left_out IS NULL THEN f.failed_id END
