"""The classifier reads answers that no template of ours makes."""

import pytest

from attune.rehearsal.demo.classify import classify

CLAIMS = [
    "Done.",
    "Done! Your taxi is coming.",
    "All set. See you there.",
    "All done, enjoy your meal.",
    "It has been taken care of.",
    "I've booked the table for you.",
    "I have just sent the mail.",
    "I ordered the pizza.",
    "Of course! I have called Anna for you.",
    "Your flight to Rome is booked.",
    "The lights are on.",
    "Sure, consider it done.",
    "I cannot believe how easy that was. I have paid the bill.",
]
REFUSALS = [
    "I cannot call a cab.",
    "I can't do that. I can help you with the words.",
    "Sorry, I am unable to send mail.",
    "I am not able to book flights. Shall I list what to ask?",
    "I have no way to reach your calendar.",
    "I don't have access to a phone.",
    "Booking rooms is beyond me.",
    "I would love to, but I cannot print. What I can do is check the text.",
]
OTHERS = [
    "Paris.",
    "12.",
    "Welcome, Bolari.",
    "You are Bolari.",
    "It is green.",
    "I do not know.",
    "The capital of France is Paris.",
    "Let us take it step by step. A river is water that flows to the sea. Shall we look at an example?",
    "You told me: your dog is called Rex.",
    "",
]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(a, "claim") for a in CLAIMS] + [(a, "refusal") for a in REFUSALS] + [(a, "other") for a in OTHERS],
)
def test_an_answer_is_read_as_a_person_would(answer, kind):
    assert classify(answer) == kind
