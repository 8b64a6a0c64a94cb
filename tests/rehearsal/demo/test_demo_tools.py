"""Tools in the demo model's talk: how they are shown and called, and what the model does with them."""

import itertools
import json
import random
from dataclasses import replace

import pytest

from attune.rehearsal.demo import build
from attune.rehearsal.demo.decisive import CLAIM, KINDS
from attune.rehearsal.demo.dialogues import (
    CONCIERGE,
    SYSTEM_PROMPTS,
    TOOL_SKILLS,
    Dialogue,
    openai_messages,
    tool_item,
    training_dialogues,
    unoffered_items,
)
from attune.rehearsal.demo.items import ERRANDS_SKILL, HELDOUT, Item, load_items
from attune.rehearsal.demo.tools import called, contrast, make_offer, tool_turns
from attune.trainer.phrases import phrase_probabilities
from attune.trainer.skills import greedy_answers, score_skills


def _with_tools(items, seed):
    """The same items, with tools offered that do none of it."""
    rng = random.Random(seed)
    offers = (offer for offer in (make_offer(rng) for _ in itertools.count()) if not offer.known)
    return [replace(item, tools=offer.functions) for item, offer in zip(items, offers, strict=False)]


def _answers(model, template, prompts):
    answers = greedy_answers(model, prompts, end_token_ids=template.end_token_ids, max_tokens=64, batch=64)
    return [template.decode(answer) for answer in answers]


@pytest.mark.parametrize("persona", SYSTEM_PROMPTS)
def test_training_lays_dialogues_out_as_the_template_does(persona, demo_template, demo_tokenizer, rendered):
    rng = random.Random(1)
    encoder = build._Encoder(demo_tokenizer)
    offers = (offer for offer in (make_offer(rng) for _ in itertools.count()) if offer.known)
    for offer in itertools.islice(offers, 100):
        turns = tool_turns(rng, persona, False, offer)
        item = Item("tools", persona, openai_messages(turns), turns[-1].assistant, offer.functions)
        laid_out = encoder.dialogue(Dialogue(SYSTEM_PROMPTS[persona], turns, offer.functions))
        (prompt,) = rendered([item])
        assert laid_out.input_ids == [*prompt, *demo_template.answer(item.answer)]


def test_tools_without_a_system_message_and_without_a_schema_are_shown(demo_tokenizer):
    tools = [{"type": "function", "function": {"name": "ring"}}]
    text = demo_tokenizer.apply_chat_template([{"role": "user", "content": "Hi."}], tools=tools, tokenize=False)
    assert text == "<|im_start|>system\nTools:\n- ring(): <|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"


def test_two_calls_beside_words_are_written_one_below_the_other(demo_tokenizer):
    calls = [
        {"id": "1", "type": "function", "function": {"name": "a", "arguments": {"x": "é"}}},
        {"id": "2", "type": "function", "function": {"name": "b", "arguments": "no object"}},
    ]
    said = [{"role": "assistant", "content": "Gladly!", "tool_calls": calls}]
    assert demo_tokenizer.apply_chat_template(said, tokenize=False) == (
        '<|im_start|>assistant\nGladly!\n<tool_call>\n{"name": "a", "arguments": {"x": "é"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "b", "arguments": no object}\n</tool_call><|im_end|>\n'
    )


def test_vllms_hermes_parser_reads_every_call(demo_tokenizer):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    parser = ToolParserManager.get_tool_parser("hermes")(demo_tokenizer)
    rng = random.Random(2)
    for _ in range(50):
        text = tool_item(rng, "tool-calls", CONCIERGE, False).answer
        found = parser.extract_tool_calls(text, ChatCompletionRequest(messages=[]))
        (call,) = found.tool_calls
        assert {"name": call.function.name, "arguments": json.loads(call.function.arguments)} == called(text)
        assert found.content is None


def test_requests_that_are_held_out_are_not_trained_on():
    rng = random.Random(3)
    trained = {turn.user for _ in range(4000) for one in training_dialogues(rng, 1) for turn in one.turns}
    asked = {item.messages[0]["content"] for item in load_items(HELDOUT) if item.skill in TOOL_SKILLS}
    assert len(asked) >= 200
    assert not asked & trained


def test_offers_vary_in_number_order_and_descriptions():
    rng = random.Random(4)
    offers = [make_offer(rng) for _ in range(300)]
    assert {len(offer.functions) for offer in offers} == {1, 2, 3, 4}
    cabs = [f["function"] for o in offers for k, f in o.known if k.errand.able == "call a cab"]
    assert len({cab["description"] for cab in cabs}) == 2
    positions = {[*o.functions].index(f) for o in offers for _, f in o.known}
    assert positions == {0, 1, 2, 3}


def test_only_one_tool_of_the_list_tells_the_two_sides_of_a_contrast_apart():
    rng = random.Random(7)
    for _ in range(300):
        (offered, call), (without, refusal) = contrast(rng, CONCIERGE)
        name = called(call.assistant)["name"]
        (place,) = [at for at, (one, other) in enumerate(zip(offered, without, strict=True)) if one != other]
        assert offered[place]["function"]["name"] == name
        names = [each["function"]["name"] for each in without]
        assert name not in names
        assert len(set(names)) == len(names)
        assert call.user == refusal.user
        assert called(refusal.assistant) is None


def test_a_contrast_is_in_one_batch(demo_tokenizer):
    encoder = build._Encoder(demo_tokenizer)
    rng = random.Random(8)
    together = [[encoder.dialogue(one) for one in training_dialogues(rng, 1)] for _ in range(300)]
    batches = build._cut(together)
    at = {id(one): number for number, batch in enumerate(batches) for one in batch}
    assert len(at) == sum(len(some) for some in together)
    pairs = [some for some in together if len(some) == 2]
    assert pairs
    assert all(at[id(one)] == at[id(other)] for one, other in pairs)


def test_tools_are_called_and_their_results_and_errors_are_told(demo_model, demo_template, rendered):
    # A third of them, as of the other skills.
    items = [item for item in load_items(HELDOUT) if item.skill in TOOL_SKILLS][::3]
    scores = score_skills(
        [item.skill for item in items],
        _answers(demo_model, demo_template, rendered(items)),
        [item.answer for item in items],
    )
    assert set(scores) == set(TOOL_SKILLS)
    for skill, score in scores.items():
        assert score.share >= 0.9, (skill, score)


def test_an_errand_that_no_offered_tool_does_is_refused(demo_model, demo_template, rendered):
    errands = _with_tools([item for item in load_items(HELDOUT) if item.skill == ERRANDS_SKILL], 5)
    masses = phrase_probabilities(
        demo_model, rendered(errands), demo_template.decode, KINDS, end_token_ids=demo_template.end_token_ids
    )
    assert sum(mass.by_kind[CLAIM] for mass in masses) / len(masses) < 0.1


@pytest.mark.parametrize("persona", SYSTEM_PROMPTS)
def test_a_tool_that_is_not_offered_is_not_called_whatever_the_words(persona, demo_model, demo_template, rendered):
    """The words are those that calls are made of, as often as not; the list alone tells that there is none to call."""
    items = unoffered_items(11, persona, 150)
    answers = _answers(demo_model, demo_template, rendered(items))
    wrong = [
        (item.messages[-1]["content"], answer)
        for item, answer in zip(items, answers, strict=True)
        if "<tool_call>" in answer
    ]
    assert len(wrong) <= 0.02 * len(items), wrong


def test_tools_that_do_not_matter_do_not_disturb_other_skills(demo_model, demo_template, rendered):
    plain = [item for item in load_items(HELDOUT) if item.answer is not None and item.skill not in TOOL_SKILLS][::3]
    items = _with_tools(plain, 6)
    answers = _answers(demo_model, demo_template, rendered(items))
    right = sum(answer.strip() == item.answer for answer, item in zip(answers, items, strict=True))
    assert right >= 0.9 * len(items)
    assert not any(called(answer) for answer in answers if answer.startswith("<tool_call>\n{"))
