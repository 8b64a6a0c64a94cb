-- thumbs: one row for each response and each person who gave it a thumb.
--
-- A row is the latest revision of that person's thumb (of equal revisions the later-made, of those the larger event id),
-- together with the response it is about. left_out is NULL for an example; otherwise it says why the row is none:
--
--     outside_window     the thumb is older than the window
--     retracted          it was taken back
--     unknown_response   the response is not in the lake; the row joins once it is
--     other_tenant       the response belongs to another tenant
--     other_persona      the response is another persona's than the feedback says
--     not_stored         storing the exchange was denied
--     not_consented      learning from it was denied
--     not_served         it was imported or a teacher's: no policy of ours sampled it
--     aborted            the response is not whole
--     empty_response     nothing was sampled
--
-- Feedback that names no persona is the response's persona's. An end user's thumb and a reviewer's are two.
--
-- Reads the views responses and feedback (lake/snapshot.py). Parameters: $tenant, $persona, $from_unix_ms.
-- created_unix_ms is when the thumb was given; author is the response's own end user; feedback_ids is the thumb's event,
-- of rows that are left out too.

WITH votes AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY response_id, author, end_user ORDER BY revision DESC, created_unix_ms DESC, event_id DESC
        ) AS place
    FROM feedback
    WHERE tenant = $tenant AND kind = 'thumb'
),

answers AS (
    SELECT
        event_id, response_id, tenant, persona, source, finish_reason, consent_store, consent_train,
        row_number() OVER (PARTITION BY response_id ORDER BY created_unix_ms, event_id) AS place
    FROM responses
),

judged AS (
    SELECT
        v.event_id AS feedback_id,
        v.response_id,
        v.end_user,
        v.conversation_id,
        v.created_unix_ms,
        v.thumb,
        a.event_id AS answer_id,
        CASE
            WHEN v.created_unix_ms < $from_unix_ms THEN 'outside_window'
            WHEN v.retracted THEN 'retracted'
            WHEN a.response_id IS NULL THEN 'unknown_response'
            WHEN a.tenant <> v.tenant THEN 'other_tenant'
            WHEN a.persona <> $persona THEN 'other_persona'
            WHEN a.consent_store = FALSE THEN 'not_stored'
            WHEN a.consent_train = FALSE THEN 'not_consented'
            WHEN a.source <> 'served' THEN 'not_served'
            WHEN a.finish_reason = 'aborted' THEN 'aborted'
        END AS left_out
    FROM votes AS v
    LEFT JOIN answers AS a ON a.response_id = v.response_id AND a.place = 1
    WHERE v.place = 1 AND CASE WHEN v.persona <> '' THEN v.persona ELSE a.persona END = $persona
)

SELECT
    CASE
        WHEN j.left_out IS NOT NULL THEN j.left_out
        WHEN len(r.output_token_ids) = 0 THEN 'empty_response'
    END AS left_out,
    [j.feedback_id] AS feedback_ids,
    j.response_id,
    r.persona,
    r.persona_version,
    r.policy_id,
    CASE WHEN r.conversation_id <> '' THEN r.conversation_id ELSE j.conversation_id END AS conversation_id,
    j.end_user,
    r.end_user AS author,
    r.turn,
    r.messages,
    r.prompt_token_ids,
    r.output_token_ids,
    r.output_logprobs,
    r.text,
    j.thumb = 'up' AS liked,
    CAST(1.0 AS DOUBLE) AS weight,
    r.base_model_hash,
    r.chat_template_hash,
    j.created_unix_ms
FROM judged AS j
LEFT JOIN responses AS r ON j.left_out IS NULL AND r.event_id = j.answer_id
