-- What ExportRecords gives: one row for each answer, those of one request together, the oldest request first.
--
-- said is what was said of the answer: of each person, kind and name the latest revision, if it was not taken back; a
-- ranking stands with the first of its responses. left_out says why the answer is not given:
--
--     not_stored       storing the exchange was denied
--     not_consented    learning from it was denied, and nobody asked for such answers
--     aborted          the answer is not whole
--
-- Reads the views responses and feedback. Parameters: $tenant, $persona (empty: all), $since_unix_ms,
-- $without_feedback, $not_for_training.

WITH latest AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY response_id, author, end_user, kind, name
            ORDER BY revision DESC, created_unix_ms DESC, event_id DESC
        ) AS place
    FROM feedback
    WHERE tenant = $tenant AND response_id <> ''
),

spoken AS (
    SELECT
        response_id,
        list(struct_pack(
            kind := kind, name := name, author := author, end_user := end_user, comment := comment, tags := tags,
            guideline_version := guideline_version, propensity := propensity, created_unix_ms := created_unix_ms,
            thumb := thumb, rating := rating, ranking := ranking, correction := correction, annotation := annotation,
            outcome_flag := outcome_flag, outcome_number := outcome_number
        ) ORDER BY created_unix_ms, event_id) AS said
    FROM latest
    WHERE place = 1 AND NOT retracted
    GROUP BY response_id
),

asked AS (
    SELECT r.request_group, min(r.created_unix_ms) AS began
    FROM responses AS r LEFT JOIN spoken AS s USING (response_id)
    WHERE r.tenant = $tenant AND ($persona = '' OR r.persona = $persona)
    GROUP BY r.request_group
    HAVING min(r.created_unix_ms) >= $since_unix_ms AND ($without_feedback OR count(s.response_id) > 0)
)

SELECT
    CASE
        WHEN r.consent_store = FALSE THEN 'not_stored'
        WHEN r.consent_train = FALSE AND NOT $not_for_training THEN 'not_consented'
        WHEN r.finish_reason = 'aborted' THEN 'aborted'
    END AS left_out,
    r.request_group,
    r.response_id,
    r.client_request_id,
    r.persona,
    r.messages,
    r.tools,
    r.text,
    r.tool_calls,
    r.reasoning,
    r.source,
    r.finish_reason,
    r.conversation_id,
    r.end_user,
    r.consent_store,
    r.consent_train,
    r.metadata,
    a.began,
    s.said
FROM responses AS r
JOIN asked AS a USING (request_group)
LEFT JOIN spoken AS s USING (response_id)
WHERE r.tenant = $tenant
ORDER BY a.began, r.request_group, r.alternative, r.response_id
