-- What every recipe reads beside the views responses and feedback (lake/snapshot.py). A dataset's id depends on this text
-- and on the recipe's.
--
-- signals: feedback as it stands now, one row for each natural key (event.proto). Of its revisions the highest counts, of
-- equal ones the later-made, of those the larger event id. What was taken back is there and says so.
--
-- Why a recipe makes no example of a signal (left_out):
--
--     outside_window     it is older than the window
--     retracted          it was taken back
--     unknown_response   the response is not in the lake; the row joins once it is
--     other_tenant       the response belongs to another tenant
--     other_persona      the response is another persona's than the feedback says
--     not_stored         storing the exchange was denied
--     not_consented      learning from it was denied
--     aborted            the response is not whole
--
-- Feedback that names no persona is the response's persona's.

CREATE OR REPLACE TEMP TABLE signals AS
SELECT * EXCLUDE (place)
FROM (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY
                tenant, kind, name, author, end_user, response_id,
                CASE WHEN response_id = '' THEN conversation_id ELSE '' END
            ORDER BY revision DESC, created_unix_ms DESC, event_id DESC
        ) AS place
    FROM feedback
)
WHERE place = 1;

-- answers: the responses that feedback is about, by themselves or as part of a conversation, without their heavy columns;
-- of one response_id the first made. unusable is NULL, or one of the last three reasons.

CREATE OR REPLACE TEMP TABLE answers AS
SELECT
    event_id, response_id, tenant, persona, source, conversation_id, turn, end_user, created_unix_ms,
    CASE
        WHEN consent_store = FALSE THEN 'not_stored'
        WHEN consent_train = FALSE THEN 'not_consented'
        WHEN finish_reason = 'aborted' THEN 'aborted'
    END AS unusable
FROM (
    SELECT
        event_id, response_id, tenant, persona, source, conversation_id, turn, end_user, created_unix_ms,
        consent_store, consent_train, finish_reason,
        row_number() OVER (PARTITION BY response_id ORDER BY created_unix_ms, event_id) AS place
    FROM responses
    WHERE
        response_id IN (
            SELECT response_id FROM feedback
            UNION
            SELECT entry.response_id FROM (SELECT unnest(ranking) AS entry FROM feedback WHERE kind = 'ranking')
        )
        OR conversation_id IN (SELECT conversation_id FROM feedback WHERE response_id = '')
)
WHERE place = 1;
