"""JSON that an answer must be: checked, and tried in a process that can be killed, before the engine sees it."""

import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import time
from collections import OrderedDict
from collections.abc import Coroutine
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from attune.chat.schemas import read_schema
from attune.errors import InvalidInput, Unavailable
from attune.inference.engine import Grammar
from attune.runtime import die_with_parent
from attune.v1 import event_pb2

_COMPILE_SECONDS = 5.0
_START_SECONDS = 60.0
# Each takes most of a gigabyte: the second is started when the first has been busy for so long.
_MOST_COMPILERS = 2
_MOMENT_SECONDS = 0.25
_MOST_REMEMBERED = 512

_Format = event_pb2.ResponseFormat

T = TypeVar("T")


class _Compiler:
    """A process of its own, which compiles one grammar at a time and can be killed."""

    def __init__(self, model: str) -> None:
        self._pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(model,)
        )

    async def ready(self, seconds: float) -> bool:
        """Whether it could be started in time."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, _is_ready)
        except (TimeoutError, BrokenProcessPool):
            return False

    async def compiles(self, grammar: Grammar, seconds: float) -> bool:
        """Raises TimeoutError and BrokenProcessPool, after either of which it is of no use."""
        async with asyncio.timeout(seconds):
            return await asyncio.get_running_loop().run_in_executor(self._pool, _compiles, grammar.kind, grammar.text)

    @property
    def pids(self) -> list[int]:
        return list(self._pool._processes or {})

    def kill(self) -> None:
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)


class Grammars:
    """Makes grammars of response formats. For one event loop; `close` ends its processes.

    A schema that takes long has one process; the others' schemas are tried in another one meanwhile.
    """

    def __init__(self, model: Path, *, compile_seconds: float = _COMPILE_SECONDS) -> None:
        self._model = str(model)
        self._compile_seconds = compile_seconds
        self._compilers: set[_Compiler] = set()
        self._starting = 0
        self._closed = False
        # None for one that could not be started.
        self._free: asyncio.Queue[_Compiler | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
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
        self._closed = True
        for compiler in self._compilers:
            compiler.kill()

    async def try_out(self, grammar: Grammar, field: str) -> None:
        """Raises InvalidInput for what the engine could not compile, or not soon, and Unavailable.

        What has begun is ended even when its caller has gone: a caller with little patience would otherwise end the
        process at each try, and nobody would ever see it started.
        """
        digest = hashlib.sha256(f"{grammar.kind} {grammar.text}".encode()).digest()
        if digest in self._good:
            self._good.move_to_end(digest)
            return
        compiler = await self._taken()
        if refusal := await asyncio.shield(self._begun(self._tried(compiler, grammar))):
            raise InvalidInput(f"no grammar {refusal.format(field)}", field=field)
        self._good[digest] = None
        if len(self._good) > _MOST_REMEMBERED:
            self._good.popitem(last=False)

    async def _taken(self) -> _Compiler:
        """A process that is free; another one is started where none is for a moment. Raises Unavailable."""
        if not self._compilers:
            self._start()
        give_up = time.monotonic() + _START_SECONDS
        while time.monotonic() < give_up:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MOMENT_SECONDS):
                    compiler = await self._free.get()
                if compiler is None:
                    break
                return compiler
            if self._free.empty() and not self._starting and len(self._compilers) < _MOST_COMPILERS:
                self._start()
        raise Unavailable("no grammars can be made at this moment", retry_after_seconds=10)

    def _start(self) -> None:
        if self._closed:
            return
        compiler = _Compiler(self._model)
        self._compilers.add(compiler)
        self._starting += 1
        self._begun(self._ready(compiler))

    async def _ready(self, compiler: _Compiler) -> None:
        """Gives it to whoever waits; or says to one of them that it could not be started."""
        is_ready = await compiler.ready(_START_SECONDS)
        self._starting -= 1
        if is_ready:
            self._free.put_nowait(compiler)
        else:
            self._drop(compiler)
            self._free.put_nowait(None)

    async def _tried(self, compiler: _Compiler, grammar: Grammar) -> str:
        """What is wrong with it, or nothing."""
        try:
            compiled = await compiler.compiles(grammar, self._compile_seconds)
        except (TimeoutError, BrokenProcessPool):
            self._drop(compiler)
            self._start()
            return f"could be made of {{}} in {self._compile_seconds:g} s"
        except asyncio.CancelledError:
            self._drop(compiler)
            raise
        self._free.put_nowait(compiler)
        return "" if compiled else "can be made of {}"

    def _drop(self, compiler: _Compiler) -> None:
        compiler.kill()
        self._compilers.discard(compiler)

    def _begun(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


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
