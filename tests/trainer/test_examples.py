from dataclasses import replace
from pathlib import Path

from tests.trainer.tiny import dataset_of, thumbs

from attune.trainer.examples import Example, least_label_share, read_examples, sample_replay, shuffled


def test_rows_come_oldest_first_by_split(tmp_path: Path) -> None:
    examples = thumbs(40)
    table = dataset_of(tmp_path, list(reversed(examples)), "hash").table()
    heldout = read_examples(table, "heldout", "hash")
    train = read_examples(table, "train", "hash")
    assert heldout == [example for example in examples if int(example.end_user[1:]) % 4 == 0]
    assert train == [example for example in examples if int(example.end_user[1:]) % 4 != 0]


def test_rows_of_another_base_and_empty_answers_are_left_out(tmp_path: Path) -> None:
    examples = [replace(example, end_user="u1") for example in thumbs(8)]
    examples[3] = replace(examples[3], output_token_ids=[])
    table = dataset_of(tmp_path, examples, "hash").table()
    assert len(read_examples(table, "train", "hash")) == 7
    assert read_examples(table, "train", "other") == []


def test_rows_bring_their_weight_and_those_of_none_are_left_out(tmp_path: Path) -> None:
    table = dataset_of(tmp_path, [replace(example, end_user="u1") for example in thumbs(4)], "hash").table()
    weighed = table.set_column(table.schema.get_field_index("weight"), "weight", [[0.25, 0.0, 0.25, 1.0]])
    assert sorted(example.weight for example in read_examples(weighed, "train", "hash")) == [0.25, 0.25, 1.0]


def test_without_a_name_each_conversation_is_a_user(tmp_path: Path) -> None:
    table = dataset_of(tmp_path, [replace(example, end_user="u1") for example in thumbs(4)], "hash").table()
    nameless = table.set_column(table.schema.get_field_index("end_user"), "end_user", [[""] * 4])
    assert {example.end_user for example in read_examples(nameless, "train", "hash")} == {"c"}


def test_the_seed_alone_decides_the_order() -> None:
    examples = thumbs(20)
    assert shuffled(examples, 1) == shuffled(examples, 1) != shuffled(examples, 2)
    assert sorted(shuffled(examples, 1), key=lambda example: example.created_unix_ms) == examples


def test_least_label_share() -> None:
    examples = [replace(example, liked=number < 3) for number, example in enumerate(thumbs(4))]
    assert least_label_share(examples) == 0.25
    assert least_label_share([]) == 0


def test_replay_is_a_share_of_the_examples_and_the_same_every_time() -> None:
    replay = [Example([number], [2], True, "", "base", 0) for number in range(100)]
    chosen = sample_replay(replay, 80, 0.25, seed=1)
    assert len(chosen) == 20
    assert chosen == sample_replay(replay, 80, 0.25, seed=1) != sample_replay(replay, 80, 0.25, seed=2)
    assert len(sample_replay(replay, 1000, 0.25, seed=1)) == 100
    assert sample_replay([], 80, 0.25, seed=1) == []
