"""From messages to the token ids that a model reads: the one rendering that inference and trainer share."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from attune.chat.messages import plain_messages
from attune.chat.tools import function_tools
from attune.errors import InvalidInput, NotFound
from attune.v1 import event_pb2

# The private-use characters of Unicode, any of which may stand in for a special token's text.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))

_MAX_CHARACTER_BYTES = 4
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class ChatTemplate:
    """A model's own chat template and tokenizer.

    A special token typed as text stays text. Before rendering, each special token's string within a message is
    replaced by a private-use character that no message has; the rendered text is split at these, the stretches
    between are tokenised as usual, and the typed strings as plain text. Where no message has such a string, the
    result is the model's own rendering. Safe to use from several threads.
    """

    def __init__(self, tokenizer: Any, *, tokenizer_hash: str, end_token_ids: frozenset[int]) -> None:
        self.text: str = tokenizer.get_chat_template()
        self.hash = hashlib.sha256(self.text.encode()).hexdigest()
        self.tokenizer_hash = tokenizer_hash
        self.end_token_ids = end_token_ids
        self._end_token_id: int = tokenizer.eos_token_id
        self._render = tokenizer.apply_chat_template
        self._parsing = _copy(tokenizer.backend_tokenizer)
        self._plain = _copy(tokenizer.backend_tokenizer)
        self._plain.encode_special_tokens = True
        self._bytes: dict[int, bytes] | None = None
        # The most that one token adds to a text: an entry's characters are characters, or stand for bytes.
        self.max_token_bytes = _MAX_CHARACTER_BYTES * max(map(len, self._plain.get_vocab()))
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special.update(tokenizer.all_special_tokens)
        # The longest first: of `<|im_start|>` and `<|im_start|>x` the one that the tokenizer would take.
        self._special = (
            re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None
        )

    @classmethod
    def load(cls, model_folder: Path) -> "ChatTemplate":
        """Reads a model's folder; raises NotFound when it has no tokenizer.json or no chat template."""
        from transformers import AutoTokenizer

        file = model_folder / "tokenizer.json"
        if not file.is_file():
            raise NotFound(f"{model_folder} holds no tokenizer.json")
        tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
        if not tokenizer.chat_template:
            raise NotFound(f"{model_folder} holds no chat template")
        return cls(
            tokenizer,
            tokenizer_hash=hashlib.sha256(file.read_bytes()).hexdigest(),
            end_token_ids=_end_token_ids(model_folder, tokenizer.eos_token_id),
        )

    def render(
        self, system_prompt: str, messages: Sequence[event_pb2.Message], tools: Sequence[event_pb2.Tool] = ()
    ) -> list[int]:
        """The prompt's token ids, up to where the assistant's answer begins.

        A leading system message is put behind the persona's system prompt, with a blank line between. The messages
        must have been checked (check_messages). Raises InvalidInput when the model's template refuses them.
        """
        conversation = plain_messages(messages)
        if conversation[0]["role"] == "system":
            system_prompt = "\n\n".join(filter(None, (system_prompt, conversation[0]["content"])))
            conversation = conversation[1:]
        if system_prompt:
            conversation.insert(0, {"role": "system", "content": system_prompt})
        offered = function_tools(tools)
        typed = self._hide_special(conversation, offered)
        rendered = self._apply(conversation, offered)
        if not typed:
            return self._tokenise(rendered)
        parts = re.split(f"([{''.join(typed)}])", rendered)
        return list(
            chain.from_iterable(
                self._plain.encode(typed[part], add_special_tokens=False).ids if part in typed else self._tokenise(part)
                for part in parts
                if part
            )
        )

    def answer(self, text: str) -> list[int]:
        """The token ids of an answer as a model would have sampled it, with the token that ends it."""
        return [*self._plain.encode(text, add_special_tokens=False).ids, self._end_token_id]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self._parsing.decode(token_ids, skip_special_tokens=False)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """A token's own bytes; those of a part of a character are not text by themselves."""
        if self._bytes is None:
            self._bytes = _token_bytes(self._parsing)
        return self._bytes.get(token_id, b"")

    def _apply(self, conversation: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        from jinja2.exceptions import TemplateError

        try:
            text: str = self._render(conversation, tools=tools or None, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidInput(f"the model's chat template refuses these messages: {error}", field="messages") from None
        return text

    def _tokenise(self, text: str) -> list[int]:
        ids: list[int] = self._parsing.encode(text, add_special_tokens=False).ids
        return ids

    def _hide_special(self, conversation: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, str]:
        """Replaces special tokens' strings in place; returns what each placeholder stands for."""
        special = self._special
        if special is None or not any(special.search(text) for text in _strings((conversation, tools))):
            return {}
        free = _free_characters(_strings((conversation, tools)))
        placeholders: dict[str, str] = {}

        def hide(match: re.Match[str]) -> str:
            if match[0] not in placeholders:
                placeholders[match[0]] = next(free)
            return placeholders[match[0]]

        conversation[:] = _with_strings(conversation, lambda text: special.sub(hide, text))
        tools[:] = _with_strings(tools, lambda text: special.sub(hide, text))
        return {placeholder: text for text, placeholder in placeholders.items()}


def _strings(value: Any) -> Iterator[str]:
    """Every string in it, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)


def _with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The same, with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _with_strings(each, change) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_strings(each, change) for each in value]
    return value


def _token_bytes(backend: Any) -> dict[int, bytes]:
    """What each token stands for: byte-level vocabularies spell bytes as characters, others hold text and `<0x0A>`."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spelt = {character: byte for byte, character in bytes_to_unicode().items()}
    byte_level = "ByteLevel" in str(type(backend.decoder)) or "ByteLevel" in str(backend.decoder)
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    found = {}
    for text, token_id in backend.get_vocab().items():
        if text in special:
            found[token_id] = text.encode()
        elif byte_level:
            found[token_id] = bytes(spelt[character] for character in text if character in spelt)
        elif match := _BYTE_TOKEN.fullmatch(text):
            found[token_id] = bytes([int(match[1], 16)])
        else:
            found[token_id] = text.replace("\u2581", " ").encode()
    return found


def _free_characters(texts: Iterator[str]) -> Iterator[str]:
    used = set(chain.from_iterable(texts))
    for code in chain.from_iterable(_PRIVATE_USE):
        if chr(code) not in used:
            yield chr(code)
    raise InvalidInput("the messages use every private-use character of Unicode", field="messages")


def _copy(backend: Any) -> Any:
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def _end_token_ids(model_folder: Path, eos_token_id: int | None) -> frozenset[int]:
    """The tokens that end an answer: generation_config.json's, where there is one, and the tokenizer's."""
    ends = {eos_token_id}
    file = model_folder / "generation_config.json"
    if file.is_file():
        configured = json.loads(file.read_text("utf-8")).get("eos_token_id")
        ends.update(configured if isinstance(configured, list) else [configured])
    return frozenset(end for end in ends if end is not None)
