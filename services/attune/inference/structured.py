"""JSON that an answer must be: checked, and tried in a process that can be killed, before the engine sees it."""

import asyncio
import hashlib
import json
import multiprocessing
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from attune.chat.schemas import read_schema
from attune.errors import InvalidInput, Unavailable
from attune.inference.engine import Grammar
from attune.runtime import die_with_parent
from attune.v1 import event_pb2

_COMPILE_SECONDS = 5.0
_START_SECONDS = 60.0
_MOST_REMEMBERED = 512

_Format = event_pb2.ResponseFormat


class Grammars:
    """Makes grammars of response formats. For one event loop; `close` ends its process."""

    def __init__(self, model: Path, *, compile_seconds: float = _COMPILE_SECONDS) -> None:
        self._model = str(model)
        self._compile_seconds = compile_seconds
        self._pool: ProcessPoolExecutor | None = None
        self._compiling = asyncio.Lock()
        self._good: OrderedDict[bytes, None] = OrderedDict()

    async def prepare(self, asked: event_pb2.ResponseFormat) -> Grammar | None:
        """The grammar, None for text; raises InvalidInput when it is out of bounds or takes too long to compile."""
        match asked.kind:
            case _Format.KIND_UNSPECIFIED | _Format.KIND_TEXT:
                return None
            case _Format.KIND_JSON_OBJECT:
                return Grammar("json_object")
            case _Format.KIND_JSON_SCHEMA:
                schema = read_schema(asked.schema_json, "response_format.schema_json")
                grammar = Grammar("json_schema", json.dumps(schema, ensure_ascii=False))
                await self.try_out(grammar, "response_format.schema_json")
                return grammar
        raise InvalidInput(
            f"response_format.kind is {asked.kind}; it must be KIND_TEXT (1), KIND_JSON_OBJECT (2) or "
            "KIND_JSON_SCHEMA (3)",
            field="response_format.kind",
        )

    def close(self) -> None:
        self._kill()

    async def try_out(self, grammar: Grammar, field: str) -> None:
        """Raises InvalidInput for what the engine could not compile, or not soon, and Unavailable.

        One at a time. What has begun is ended even when its caller has gone: a caller with little patience would
        otherwise end the process at each try, and nobody would ever see it started.
        """
        digest = hashlib.sha256(f"{grammar.kind} {grammar.text}".encode()).digest()
        if digest in self._good:
            self._good.move_to_end(digest)
            return
        await self._compiling.acquire()
        trial = asyncio.create_task(self._compile(grammar))
        trial.add_done_callback(lambda _: self._compiling.release())
        if refusal := await asyncio.shield(trial):
            raise InvalidInput(f"no grammar {refusal.format(field)}", field=field)
        self._good[digest] = None
        if len(self._good) > _MOST_REMEMBERED:
            self._good.popitem(last=False)

    async def _compile(self, grammar: Grammar) -> str:
        """What is wrong with it, or nothing."""
        loop = asyncio.get_running_loop()
        try:
            pool = await self._started()
            work = loop.run_in_executor(pool, _compiles, grammar.kind, grammar.text)
            compiled = await asyncio.wait_for(work, self._compile_seconds)
        except (TimeoutError, BrokenProcessPool):
            self._kill()
            return f"could be made of {{}} in {self._compile_seconds:g} s"
        except asyncio.CancelledError:
            self._kill()
            raise
        return "" if compiled else "can be made of {}"

    async def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                1, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(self._model,)
            )
            ready = asyncio.get_running_loop().run_in_executor(self._pool, _is_ready)
            try:
                await asyncio.wait_for(ready, _START_SECONDS)
            except (TimeoutError, BrokenProcessPool):
                self._kill()
                raise Unavailable("no grammars can be made at this moment", retry_after_seconds=10) from None
        return self._pool

    def _kill(self) -> None:
        if self._pool is None:
            return
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None


_compiler: Any = None


def _prepare(model: str) -> None:
    die_with_parent()
    import xgrammar
    from transformers import AutoTokenizer

    global _compiler  # noqa: PLW0603 - what the process is for
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    _compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer), max_threads=1)


def _is_ready() -> bool:
    return _compiler is not None


def _compiles(kind: str, text: str) -> bool:
    compile_text = _compiler.compile_json_schema if kind == "json_schema" else _compiler.compile_structural_tag
    try:
        compile_text(text)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is refused
        return False
    return True
