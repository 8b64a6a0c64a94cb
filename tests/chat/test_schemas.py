import json

import pytest

from attune.chat.schemas import read_schema
from attune.errors import InvalidInput

REFUSED = {
    "a reference that is a list": ('{"$ref": ["#"]}', "not to one of its own definitions"),
    "a reference that is a number": ('{"$ref": 1}', "not to one of its own definitions"),
    "a bound beyond any float": (f'{{"minItems": 1{"0" * 400}}}', "a minItems of more than 15 digits; it must"),
    "a bound that is infinite": ('{"maxLength": 1e999}', "a maxLength of more than 15 digits; it must"),
    "a number of 5,000 digits": (f'{{"minItems": 1{"0" * 5000}}}', "is not JSON"),
    "brackets without end": ("[" * 16_000, "is not JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_schema_that_means_harm_is_refused(case: str) -> None:
    text, sentence = REFUSED[case]
    with pytest.raises(InvalidInput, match=sentence):
        read_schema(text, "schema")


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"type": "object", "properties": {"$ref": {"type": "string"}, "pattern": {"type": "string"}}}
    assert read_schema(json.dumps(schema), "schema") == schema


@pytest.mark.parametrize("definition", [True, False])
def test_a_definition_may_be_true_or_false(definition: bool) -> None:
    schema = {"$defs": {"any": definition}, "properties": {"a": {"$ref": "#/$defs/any", "title": "A"}}}
    assert read_schema(json.dumps(schema), "schema") == {"properties": {"a": definition}}
