from dataclasses import replace
from pathlib import Path

from tests.trainer.tiny import dataset_of, thumbs

from attune.trainer.examples import least_label_share, read_examples, shuffled


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
