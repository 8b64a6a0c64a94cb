-- thumbs: one row for each response and each person who gave it a thumb.
-- kinds: thumb
--
-- A row is that person's thumb as it stands now, together with the response it is about. An end user's thumb and a
-- reviewer's are two. left_out is NULL for an example; otherwise one of the reasons in views.sql, or:
--
--     not_served         it was imported or a teacher's: no policy of ours sampled it
--     masked             personal data was masked in it, and its tokens with it
--     empty_response     nothing was sampled
--
-- label is liked or disliked; created_unix_ms is when the thumb was given; end_user gave it.
-- Parameters: $tenant, $persona, $from_unix_ms.

WITH judged AS (
    SELECT
        s.event_id AS feedback_id,
        s.response_id,
        s.author,
        s.end_user,
        s.conversation_id,
        s.guideline_version,
        s.created_unix_ms,
        CASE WHEN s.thumb = 'up' THEN 'liked' ELSE 'disliked' END AS label,
        a.event_id AS answer_id,
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
        s.tenant = $tenant AND s.kind = 'thumb'
        AND CASE WHEN s.persona <> '' THEN s.persona ELSE a.persona END = $persona
)

SELECT
    CASE
        WHEN j.left_out IS NOT NULL THEN j.left_out
        WHEN cardinality(r.masked) > 0 THEN 'masked'
        WHEN array_length(r.output_token_ids) = 0 THEN 'empty_response'
    END AS left_out,
    left(sha256(concat_ws('/', 'thumbs', j.response_id, j.author, j.end_user)), 32) AS example_id,
    j.label,
    CAST(1 AS DOUBLE) AS weight,
    [j.end_user, r.end_user] AS people,
    [j.end_user] AS givers,
    [j.feedback_id] AS feedback_ids,
    [j.response_id] AS response_ids,
    j.response_id,
    r.persona,
    r.persona_version,
    j.guideline_version,
    r.policy_id,
    CASE WHEN r.conversation_id <> '' THEN r.conversation_id ELSE j.conversation_id END AS conversation_id,
    j.end_user,
    r.turn,
    r.messages,
    r.tools,
    [
        struct_pack(
            role := 'assistant', content := r.text, tool_calls := r.tool_calls, tool_call_id := '', reasoning := r.reasoning
        )
    ] AS completion,
    r.prompt_token_ids,
    r.output_token_ids,
    r.output_logprobs,
    r.logprobs_mode,
    r.base_model_hash,
    r.chat_template_hash,
    j.created_unix_ms
FROM responses AS r
RIGHT JOIN judged AS j ON r.event_id = CASE WHEN j.left_out IS NULL THEN j.answer_id END
