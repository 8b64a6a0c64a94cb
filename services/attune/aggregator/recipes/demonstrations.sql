-- demonstrations: one row for each response and each person who corrected it or gave it five stars: an answer to imitate.
-- kinds: rating, correction
--
-- label is correction (the completion is what the person wrote, and has no token ids) or five_stars (the completion is the
-- response, with the token ids and log-probabilities of the policy that answered; of imported ones there are none).
-- left_out is NULL for an example; otherwise one of the reasons in views.sql, or:
--
--     not_five_stars   the rating is below five
--     contradicted     somebody corrected the response, or gave it one or two stars
--     same_answer      the correction says what the response said
--
-- created_unix_ms is when the signal was given; end_user gave it. Parameters: $tenant, $persona, $from_unix_ms.

WITH judged AS (
    SELECT
        s.event_id AS feedback_id,
        s.kind,
        s.response_id,
        s.author,
        s.end_user,
        s.guideline_version,
        s.created_unix_ms,
        s.rating,
        s.correction,
        a.event_id AS answer_id,
        CASE
            WHEN s.created_unix_ms < $from_unix_ms THEN 'outside_window'
            WHEN s.retracted THEN 'retracted'
            WHEN a.response_id IS NULL THEN 'unknown_response'
            WHEN a.tenant <> s.tenant THEN 'other_tenant'
            WHEN a.persona <> $persona THEN 'other_persona'
            ELSE a.unusable
        END AS left_out
    FROM signals AS s
    LEFT JOIN answers AS a ON a.response_id = s.response_id
    WHERE
        s.tenant = $tenant AND s.kind IN ('rating', 'correction')
        AND CASE WHEN s.persona <> '' THEN s.persona ELSE a.persona END = $persona
),

doubted AS (
    SELECT
        *,
        sum(CASE WHEN left_out IS NULL AND (kind = 'correction' OR rating <= 2) THEN 1 ELSE 0 END)
            OVER (PARTITION BY response_id) AS doubts
    FROM judged
),

found AS (
    SELECT
        * EXCLUDE (left_out),
        CASE
            WHEN left_out IS NOT NULL THEN left_out
            WHEN kind = 'rating' AND rating < 5 THEN 'not_five_stars'
            WHEN kind = 'rating' AND doubts > 0 THEN 'contradicted'
        END AS left_out
    FROM doubted
)

SELECT
    CASE
        WHEN f.left_out IS NOT NULL THEN f.left_out
        WHEN f.correction = r.text THEN 'same_answer'
    END AS left_out,
    left(sha256(concat_ws('/', 'demonstrations', f.kind, f.response_id, f.author, f.end_user)), 32) AS example_id,
    CASE WHEN f.kind = 'correction' THEN 'correction' ELSE 'five_stars' END AS label,
    CAST(1 AS DOUBLE) AS weight,
    [f.end_user, r.end_user] AS people,
    [f.end_user] AS givers,
    [f.feedback_id] AS feedback_ids,
    [f.response_id] AS response_ids,
    f.response_id,
    r.persona,
    r.persona_version,
    f.guideline_version,
    CASE WHEN f.kind = 'correction' THEN '' ELSE r.policy_id END AS policy_id,
    r.conversation_id,
    f.end_user,
    r.turn,
    r.messages,
    r.tools,
    [
        struct_pack(
            role := 'assistant',
            content := CASE WHEN f.kind = 'correction' THEN f.correction ELSE r.text END,
            tool_calls := list_filter(r.tool_calls, lambda x: f.kind <> 'correction'),
            tool_call_id := '',
            reasoning := CASE WHEN f.kind = 'correction' THEN '' ELSE r.reasoning END
        )
    ] AS completion,
    r.prompt_token_ids,
    list_filter(r.output_token_ids, lambda x: f.kind <> 'correction') AS output_token_ids,
    list_filter(r.output_logprobs, lambda x: f.kind <> 'correction') AS output_logprobs,
    r.logprobs_mode,
    r.base_model_hash,
    r.chat_template_hash,
    f.created_unix_ms
FROM responses AS r
RIGHT JOIN found AS f ON r.event_id = CASE WHEN f.left_out IS NULL THEN f.answer_id END
