from attune.aggregator.split import split_of

KEY = b"k" * 32


def test_about_the_share_is_held_out_and_by_the_key() -> None:
    people = [f"user-{n}" for n in range(2000)]
    heldout = {person for person in people if split_of(KEY, "default", [person], "", 0.2) == "heldout"}
    assert 330 < len(heldout) < 470
    other = {person for person in people if split_of(b"z" * 32, "default", [person], "", 0.2) == "heldout"}
    assert heldout != other


def test_a_persons_split_is_known_for_ever() -> None:
    heldout = [n for n in range(30) if split_of(KEY, "default", [f"user-{n}"], "", 0.2) == "heldout"]
    assert heldout == [15, 17, 21, 24, 25, 29]


def test_a_larger_share_only_adds_people() -> None:
    for n in range(200):
        if split_of(KEY, "default", [f"user-{n}"], "", 0.2) == "heldout":
            assert split_of(KEY, "default", [f"user-{n}"], "", 0.4) == "heldout"


def test_either_of_two_people_who_is_held_out_holds_the_example_out() -> None:
    assert split_of(KEY, "default", ["user-0", "user-15"], "", 0.2) == "heldout"
    assert split_of(KEY, "default", ["user-0", ""], "c-6", 0.2) == "train"


def test_where_nobody_is_known_the_conversation_decides() -> None:
    heldout = [n for n in range(20) if split_of(KEY, "default", ["", ""], f"c-{n}", 0.2) == "heldout"]
    assert heldout == [6, 9, 15]
