-- pairs: one row for each comparison of two answers to the same prompt: chosen was preferred to rejected.
-- kinds: thumb, ranking, correction
--
-- Prompts are the same when their messages and tools are; answers are when their text and tool calls are. Imported answers
-- count too; they have no token ids. label says where a comparison comes from:
--
-- ranking      A person ranked one answer above the other. A ranking of k answers gives every pair of them that is not
--              tied, each with the weight 2/k: together as much as k - 1 answers compared one by one.
-- thumbs       Of the same prompt one answer has a thumb up and another a thumb down, by whomever. Thumbs on one answer
--              are counted first and the majority holds; then the oldest thumb up goes with the oldest thumb down, the
--              second with the second: no thumb is used twice, and no prompt outgrows the others.
-- correction   What the answer should have said is preferred to what it said. What was written has no token ids.
--
-- left_out is NULL for an example; otherwise one of the reasons in views.sql, of either signal, or:
--
--     tie                 a person ranked both alike, or an answer has as many thumbs up as down
--     outvoted            more people said the opposite
--     contradicted        as many people said the opposite
--     different_prompts   the ranked answers are not to the same prompt
--     same_answer         both answers say the same
--     no_counterpart      no other answer to this prompt has a thumb the other way that is still free
--
-- weight is 1 but for rankings. created_unix_ms is when the newer signal was given; people are all who spoke or were
-- spoken to; guideline_version is the ranking's, the correction's, or the thumb up's.
-- Parameters: $tenant, $persona, $from_unix_ms.

WITH said AS (
    SELECT
        event_id AS feedback_id, kind, tenant, persona, end_user, guideline_version, created_unix_ms, retracted, response_id,
        thumb, correction, CAST(NULL AS BIGINT) AS place, CAST(NULL AS BIGINT) AS ranked
    FROM signals
    WHERE tenant = $tenant AND kind IN ('thumb', 'correction')
    UNION ALL
    SELECT
        event_id, kind, tenant, persona, end_user, guideline_version, created_unix_ms, retracted, entry.response_id,
        NULL, NULL, entry.rank, ranked
    FROM (
        SELECT *, row_number() OVER (PARTITION BY event_id, entry.response_id ORDER BY entry.rank) AS again
        FROM (
            SELECT *, unnest(ranking) AS entry, CAST(array_length(ranking) AS BIGINT) AS ranked
            FROM signals
            WHERE tenant = $tenant AND kind = 'ranking'
        )
    )
    WHERE again = 1
),

judged AS (
    SELECT
        s.*,
        a.event_id AS answer_id,
        a.end_user AS author,
        CASE
            WHEN s.created_unix_ms < $from_unix_ms THEN 'outside_window'
            WHEN s.retracted THEN 'retracted'
            WHEN a.response_id IS NULL THEN 'unknown_response'
            WHEN a.tenant <> s.tenant THEN 'other_tenant'
            WHEN a.persona <> $persona THEN 'other_persona'
            ELSE a.unusable
        END AS left_out
    FROM said AS s
    LEFT JOIN answers AS a ON a.response_id = s.response_id
    WHERE CASE WHEN s.persona <> '' THEN s.persona ELSE a.persona END = $persona
),

contents AS (
    SELECT
        event_id AS answer_id,
        md5(concat_ws('/', to_json(messages), to_json(tools))) AS prompt,
        md5(concat_ws('/', text, to_json(tool_calls))) AS answer
    FROM responses
    WHERE event_id IN (SELECT answer_id FROM judged WHERE left_out IS NULL)
),

known AS (
    SELECT j.*, c.prompt, c.answer
    FROM judged AS j
    LEFT JOIN contents AS c ON c.answer_id = j.answer_id
),

ranked_pairs AS (
    SELECT
        'ranking' AS label,
        CASE
            WHEN b.left_out IS NOT NULL THEN b.left_out
            WHEN w.left_out IS NOT NULL THEN w.left_out
            WHEN b.prompt <> w.prompt THEN 'different_prompts'
            WHEN b.answer = w.answer THEN 'same_answer'
            WHEN b.place = w.place THEN 'tie'
        END AS left_out,
        [b.feedback_id] AS feedback_ids,
        [b.end_user, b.author, w.author] AS people,
        [b.end_user] AS givers,
        b.guideline_version,
        b.created_unix_ms,
        CAST(2 AS DOUBLE) / b.ranked AS weight,
        b.prompt,
        b.response_id AS chosen_response_id, b.answer_id AS chosen_id, b.answer AS chosen,
        w.response_id AS rejected_response_id, w.answer_id AS rejected_id, w.answer AS rejected
    FROM known AS b
    INNER JOIN known AS w
        ON
            b.feedback_id = w.feedback_id
            AND (b.place < w.place OR (b.place = w.place AND b.response_id < w.response_id))
    WHERE b.kind = 'ranking' AND w.kind = 'ranking'
),

tallied AS (
    SELECT
        *,
        sum(CASE WHEN left_out IS NOT NULL THEN 0 WHEN thumb = 'up' THEN 1 ELSE -1 END)
            OVER (PARTITION BY prompt, answer) AS balance
    FROM known
    WHERE kind = 'thumb'
),

held AS (
    SELECT
        * EXCLUDE (left_out),
        CASE
            WHEN left_out IS NOT NULL THEN left_out
            WHEN balance = 0 THEN 'tie'
            WHEN (balance > 0) <> (thumb = 'up') THEN 'outvoted'
        END AS left_out
    FROM tallied
),

-- Of thumbs that hold: which one it is on its prompt and side, and how many there are on either side.
numbered AS (
    SELECT
        *,
        row_number() OVER (PARTITION BY prompt, thumb, left_out ORDER BY created_unix_ms, feedback_id) AS number,
        sum(CASE WHEN left_out IS NULL AND thumb = 'up' THEN 1 ELSE 0 END) OVER (PARTITION BY prompt) AS ups,
        sum(CASE WHEN left_out IS NULL AND thumb = 'down' THEN 1 ELSE 0 END) OVER (PARTITION BY prompt) AS downs
    FROM held
),

matched AS (
    SELECT
        * EXCLUDE (left_out),
        CASE WHEN left_out IS NULL AND number > least(ups, downs) THEN 'no_counterpart' ELSE left_out END AS left_out
    FROM numbered
),

thumbs AS (
    SELECT
        'thumbs' AS label,
        CAST(NULL AS VARCHAR) AS left_out,
        [u.feedback_id, d.feedback_id] AS feedback_ids,
        [u.end_user, u.author, d.end_user, d.author] AS people,
        [u.end_user, d.end_user] AS givers,
        u.guideline_version,
        greatest(u.created_unix_ms, d.created_unix_ms) AS created_unix_ms,
        CAST(1 AS DOUBLE) AS weight,
        u.prompt,
        u.response_id AS chosen_response_id, u.answer_id AS chosen_id, u.answer AS chosen,
        d.response_id AS rejected_response_id, d.answer_id AS rejected_id, d.answer AS rejected
    FROM matched AS u
    INNER JOIN matched AS d ON d.prompt = u.prompt AND d.number = u.number
    WHERE u.thumb = 'up' AND u.left_out IS NULL AND d.thumb = 'down' AND d.left_out IS NULL
),

comparisons AS (
    SELECT
        *,
        sum(CASE WHEN left_out IS NOT NULL THEN 0 WHEN chosen < rejected THEN 1 ELSE -1 END)
            OVER (PARTITION BY prompt, least(chosen, rejected), greatest(chosen, rejected)) AS balance
    FROM (SELECT * FROM ranked_pairs UNION ALL SELECT * FROM thumbs)
),

-- Every row, examples or not; of those that are none, answers do not matter any more.
found AS (
    SELECT
        label,
        CASE
            WHEN left_out IS NOT NULL THEN left_out
            WHEN balance = 0 THEN 'contradicted'
            WHEN (balance > 0) <> (chosen < rejected) THEN 'outvoted'
        END AS left_out,
        feedback_ids, people, givers, guideline_version, created_unix_ms, weight,
        chosen_response_id, chosen_id, rejected_response_id, rejected_id, CAST(NULL AS VARCHAR) AS correction
    FROM comparisons
    UNION ALL
    SELECT
        'thumbs', left_out, [feedback_id], [end_user, author], [end_user], guideline_version, created_unix_ms, CAST(1 AS DOUBLE),
        response_id, answer_id, '', '', NULL
    FROM matched
    WHERE left_out IS NOT NULL
    UNION ALL
    SELECT
        'correction',
        left_out,
        [feedback_id], [end_user, author], [end_user], guideline_version, created_unix_ms, CAST(1 AS DOUBLE),
        '', '', response_id, answer_id, correction
    FROM known
    WHERE kind = 'correction'
)

SELECT
    CASE
        WHEN f.left_out IS NOT NULL THEN f.left_out
        WHEN f.correction = w.text THEN 'same_answer'
    END AS left_out,
    left(
        sha256(concat_ws('/', 'pairs', f.chosen_response_id, f.rejected_response_id, array_to_string(f.feedback_ids, '/'))), 32
    ) AS example_id,
    f.label,
    f.weight,
    f.people,
    f.givers,
    f.feedback_ids,
    CASE
        WHEN f.correction IS NULL THEN [f.chosen_response_id, f.rejected_response_id]
        ELSE [f.rejected_response_id]
    END AS response_ids,
    w.persona,
    w.persona_version,
    f.guideline_version,
    w.conversation_id,
    w.turn,
    w.messages,
    w.tools,
    w.prompt_token_ids,
    f.chosen_response_id,
    CASE WHEN f.correction IS NULL THEN c.policy_id ELSE '' END AS chosen_policy_id,
    [
        struct_pack(
            role := 'assistant',
            content := CASE WHEN f.correction IS NULL THEN c.text ELSE f.correction END,
            tool_calls := CASE WHEN f.correction IS NULL THEN c.tool_calls ELSE list_filter(w.tool_calls, lambda x: FALSE) END,
            tool_call_id := '',
            reasoning := CASE WHEN f.correction IS NULL THEN c.reasoning ELSE '' END
        )
    ] AS chosen,
    coalesce(c.output_token_ids, CAST([] AS BIGINT[])) AS chosen_token_ids,
    coalesce(c.output_logprobs, CAST([] AS FLOAT[])) AS chosen_logprobs,
    f.rejected_response_id,
    w.policy_id AS rejected_policy_id,
    [
        struct_pack(
            role := 'assistant', content := w.text, tool_calls := w.tool_calls, tool_call_id := '', reasoning := w.reasoning
        )
    ] AS rejected,
    w.output_token_ids AS rejected_token_ids,
    w.output_logprobs AS rejected_logprobs,
    w.logprobs_mode,
    w.base_model_hash,
    w.chat_template_hash,
    f.created_unix_ms
FROM responses AS c
RIGHT JOIN (
    responses AS w
    RIGHT JOIN found AS f ON w.event_id = CASE WHEN f.left_out IS NULL THEN f.rejected_id END
) ON c.event_id = CASE WHEN f.left_out IS NULL THEN f.chosen_id END
