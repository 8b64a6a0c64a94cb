from collections import Counter
from itertools import islice

from attune.rehearsal.demo.items import REGRESSION, load_items
from attune.rehearsal.demo.prompts import user_prompts
from attune.rehearsal.questions import heldout_errands, heldout_skills


def test_there_are_enough_questions_of_each_skill_in_the_persona_that_can_lose_it() -> None:
    counts = Counter((item.skill, item.persona) for item in heldout_skills())
    assert counts == {
        ("facts", "concierge"): 200,
        ("arithmetic", "concierge"): 200,
        ("recall", "concierge"): 200,
        ("style-concierge", "concierge"): 200,
        ("style-tutor", "tutor"): 200,
    }
    assert len(heldout_errands()) >= 100


def test_no_question_is_seen_by_the_gate_or_sent_by_a_user() -> None:
    asked = {(item.persona, str(item.tools), str(item.messages)) for item in (*heldout_skills(), *heldout_errands())}
    assert len(asked) == len(heldout_skills()) + len(heldout_errands())
    gate = {(item.persona, str(item.tools), str(item.messages)) for item in load_items(REGRESSION)}
    assert not asked & gate
    sent = {(item.persona, str(item.tools), str(item.messages)) for item in islice(user_prompts(1), 3000)}
    assert not asked & sent


def test_the_questions_are_the_same_every_time() -> None:
    assert heldout_skills() == heldout_skills()
