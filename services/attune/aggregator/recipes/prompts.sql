-- prompts: one row for each prompt that a person sent, with nothing of the answers: what a policy may practise on.
-- kinds: thumb, rating, ranking, correction, annotation, outcome, implicit, remark
--
-- Prompts are the same when their messages and tools are. Of a prompt that one person sent several times the row is the
-- newest. weight is 1 over the number of people who sent it, so that a prompt that all send counts once. Where nobody is
-- named, a conversation stands for a person. Imported prompts count too; they have no token ids. What is older than the
-- window is not looked at. left_out is NULL for an example; otherwise not_stored or not_consented as in views.sql, or:
--
--     repeated   the same person sent it again later
--
-- label is single_turn or multi_turn; created_unix_ms is when it was sent; there is no feedback in it, so feedback_ids is
-- empty. Parameters: $tenant, $persona, $from_unix_ms.

WITH asked AS (
    SELECT
        event_id,
        response_id,
        end_user,
        CASE WHEN end_user = '' THEN conversation_id ELSE '' END AS nobody,
        created_unix_ms,
        md5(concat_ws('/', to_json(messages), to_json(tools))) AS prompt,
        CASE
            WHEN consent_store = FALSE THEN 'not_stored'
            WHEN consent_train = FALSE THEN 'not_consented'
        END AS left_out
    FROM responses
    WHERE tenant = $tenant AND persona = $persona AND created_unix_ms >= $from_unix_ms
),

numbered AS (
    SELECT
        * EXCLUDE (left_out),
        CASE
            WHEN left_out IS NOT NULL THEN left_out
            WHEN row_number() OVER (
                PARTITION BY prompt, end_user, nobody, left_out ORDER BY created_unix_ms DESC, event_id DESC
            ) > 1 THEN 'repeated'
        END AS left_out
    FROM asked
),

found AS (
    SELECT *, sum(CASE WHEN left_out IS NULL THEN 1 ELSE 0 END) OVER (PARTITION BY prompt) AS askers
    FROM numbered
)

SELECT
    f.left_out,
    left(sha256(concat_ws('/', 'prompts', f.event_id)), 32) AS example_id,
    CASE WHEN r.turn > 1 THEN 'multi_turn' ELSE 'single_turn' END AS label,
    CAST(1 AS DOUBLE) / greatest(f.askers, 1) AS weight,
    [r.end_user] AS people,
    [r.end_user] AS givers,
    CAST([] AS VARCHAR[]) AS feedback_ids,
    [f.response_id] AS response_ids,
    r.persona,
    r.persona_version,
    r.conversation_id,
    r.turn,
    r.messages,
    r.tools,
    r.prompt_token_ids,
    r.base_model_hash,
    r.chat_template_hash,
    f.created_unix_ms
FROM responses AS r
RIGHT JOIN found AS f ON r.event_id = CASE WHEN f.left_out IS NULL THEN f.event_id END
