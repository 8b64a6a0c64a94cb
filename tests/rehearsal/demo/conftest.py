from collections.abc import Sequence

import pytest
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from attune.chat.messages import typed_messages
from attune.chat.template import ChatTemplate
from attune.chat.tools import typed_tools
from attune.rehearsal.demo.dialogues import SYSTEM_PROMPTS
from attune.rehearsal.demo.items import MODEL, Item
from attune.trainer.model import load_base


@pytest.fixture(scope="session")
def demo_template() -> ChatTemplate:
    return ChatTemplate.load(MODEL)


@pytest.fixture(scope="session")
def demo_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="session")
def demo_model() -> PreTrainedModel:
    return load_base(MODEL, "float32")


@pytest.fixture(scope="session")
def rendered(demo_template: ChatTemplate):
    def render(items: Sequence[Item]) -> list[list[int]]:
        return [
            demo_template.render(SYSTEM_PROMPTS[item.persona], typed_messages(item.messages), typed_tools(item.tools))
            for item in items
        ]

    return render
