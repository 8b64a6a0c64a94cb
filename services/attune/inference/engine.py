"""The engine: vLLM's AsyncLLM in this process, its core in a child process. The only file that imports vllm."""

import asyncio
import contextlib
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from attune.errors import DeadlineExceeded, FailedPrecondition, InvalidInput, NotFound, ResourceExhausted, Unavailable
from attune.metrics import observe_all
from attune.v1 import event_pb2

logger = logging.getLogger(__name__)

# After temperature, penalties, top-k and top-p: the distribution that tokens are drawn from.
LOGPROBS_MODE = "processed_logprobs"

# The core holds nothing that outlives it, and takes its time to free what it holds.
_STOP_SECONDS = 1.0

# The model runs in the core's own process. vLLM turns "uni" into a worker process on CPU, for binding threads to
# cores, which is not done here; that costs a second start and a hop at every step.
_IN_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"

# The ranks that vLLM takes.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Between the parts of a forced call's arguments; at will, a model may fill its answer with it.
_MOST_WHITESPACE = 4

# Requests of the engine's own (health, swap probes) that may be queued beside those that were admitted.
_OWN_REQUESTS = 16


@dataclass(frozen=True)
class EngineOptions:
    """How the engine is set up; see settings.EngineSettings."""

    model: Path
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_queued: int = 256
    max_loras: int = 4
    max_lora_rank: int = 16
    kv_cache_gib: int = 1
    gpu_memory_utilization: float = 0.85
    omp_threads: int = 0
    enforce_eager: bool = True
    dtype: str = "auto"
    # Answers go on to max_tokens: for measuring.
    ignore_end: bool = False


@dataclass(frozen=True)
class Adapter:
    """A policy's adapter as the engine knows it: id, name and folder are of this load alone."""

    policy_id: str
    load: int
    folder: Path


@dataclass(frozen=True)
class Grammar:
    """What an answer is held to: a JSON schema, some JSON object, or the tags of a tool call in vLLM's form."""

    kind: Literal["json_schema", "json_object", "structural_tag"]
    text: str = ""


class Generation:
    """One request in the engine: what was sampled so far, and how it ended.

    Tokens and logprobs grow as `next_text` is called; a slow caller gets several tokens at once.
    """

    def __init__(self, llm: Any, queue: Any, begun_seconds: float, most_top: int) -> None:
        self._llm = llm
        self._queue = queue
        self._begun_seconds = begun_seconds
        self._most_top = most_top
        # On the monotonic clock.
        self.first_token_seconds: float | None = None
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        # For each token the likeliest ones, (id, logprob), best first; empty unless asked for.
        self.top_logprobs: list[list[tuple[int, float]]] = []
        self.text = ""
        # vLLM's word: stop, length, abort, error; None while running.
        self.finish_reason: str | None = None

    async def next_text(self) -> str:
        """Waits for at least one more token; returns the text that follows, whole characters, perhaps none.

        To be called until finish_reason is set. Raises Unavailable when the engine has died.
        """
        output = self._queue.get_nowait() if self._queue.output is not None else None
        if output is None:
            try:
                output = await self._queue.get()
            except Exception as error:
                raise Unavailable("the engine has died; it is being restarted", retry_after_seconds=10) from error
        return self._take(output)

    async def abort(self) -> None:
        """Stops the engine's work on it; afterwards what was sampled until now is here. Idempotent."""
        if self.finish_reason is not None:
            return
        # A dead engine cannot be told, and need not be.
        with contextlib.suppress(Exception):
            await self.interrupt()
            if (output := self._queue.get_nowait()) is not None:
                self._take(output)
        self.finish_reason = self.finish_reason or "abort"

    async def interrupt(self) -> None:
        """Stops the engine's work on it; whoever is in `next_text` gets what is left, with finish_reason `abort`."""
        await self._llm.abort(self._queue.request_id, internal=True)

    def _take(self, output: Any) -> str:
        completion = output.outputs[0]
        if self.first_token_seconds is None and completion.token_ids:
            self.first_token_seconds = self._begun_seconds + output.metrics.first_token_latency
        self.token_ids.extend(completion.token_ids)
        if self._most_top:
            self._take_top_logprobs(completion.logprobs)
        elif completion.logprobs is not None:
            self.logprobs.extend(completion.logprobs)
        self.finish_reason = completion.finish_reason
        text: str = completion.text
        self.text += text
        return text

    def _take_top_logprobs(self, flat: Any) -> None:
        """vLLM's flat form: at each position the sampled token, then the likeliest ones.

        For who reads slowly it makes several outputs one, and tells a sampled token that is among the likeliest once.
        """
        for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
            self.logprobs.append(flat.logprobs[start])
            told = dict(zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True))
            likeliest = sorted(told.items(), key=lambda one: one[1], reverse=True)[: self._most_top]
            # What a grammar or top-p leaves out has no probability at all.
            self.top_logprobs.append([(token, logprob) for token, logprob in likeliest if math.isfinite(logprob)])


class Engine:
    """vLLM, with what attune needs of it."""

    def __init__(self, llm: Any, options: EngineOptions, moves: "_Moves") -> None:
        self._llm = llm
        self._options = options
        self._moves = moves
        self._requests = itertools.count(1)
        self._loads = itertools.count(1)
        self._cores = [psutil.Process(process.pid) for process in llm.engine_core.resources.engine_manager.processes]
        self.model_tokens: int = llm.vllm_config.model_config.max_model_len
        # Of the core, which are always busy; none on a GPU.
        self.cpu_threads = _threads(options) if llm.vllm_config.device_config.device_type == "cpu" else 0
        # A swap in progress: the engine does nothing else while it loads or removes an adapter.
        self.swaps_running = 0

    @classmethod
    async def start(cls, options: EngineOptions) -> "Engine":
        """Starts it, which takes some seconds; sets environment variables that vLLM reads when it is imported.

        The starting script's main module must be guarded by `if __name__ == "__main__"`.
        """
        _prepare_environment(options)
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.envs import enable_envs_cache
        from vllm.platforms import current_platform
        from vllm.v1.engine import output_processor
        from vllm.v1.engine.async_llm import AsyncLLM

        output_processor.LogprobsProcessor = _logprobs_processor()
        moves = _Moves()
        on_cpu: dict[str, Any] = (
            {"distributed_executor_backend": _IN_CORE}
            if current_platform.is_cpu()
            else {"gpu_memory_utilization": options.gpu_memory_utilization}
        )
        arguments = AsyncEngineArgs(
            model=str(options.model),
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_num_queued_reqs=options.max_queued + _OWN_REQUESTS,
            dtype=options.dtype,
            enforce_eager=options.enforce_eager,
            enable_lora=True,
            max_loras=options.max_loras,
            max_cpu_loras=options.max_loras,
            max_lora_rank=next(rank for rank in _RANKS if rank >= options.max_lora_rank),
            logprobs_mode=LOGPROBS_MODE,
            # Whitespace at will would let a model fill its answer with it.
            structured_outputs_config=StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
            enable_prefix_caching=True,
            enable_log_requests=False,
            use_tqdm_on_load=False,
            **on_cpu,
        )

        class Llm(AsyncLLM):  # type: ignore[misc]
            def __del__(self) -> None:
                """Leaves shutting down to Engine.stop: a finaliser may run after the modules that it needs are gone."""

        llm = Llm.from_engine_args(arguments, stat_loggers=[moves.logger()])
        # vLLM reads some variables for every token; from here on they stay as they are.
        enable_envs_cache()
        return cls(llm, options, moves)

    async def generate(
        self,
        prompt_token_ids: list[int],
        sampling: event_pb2.Sampling,
        *,
        tenant: str,
        adapter: Adapter | None,
        streaming: bool,
        top_logprobs: int = 0,
        grammar: Grammar | None = None,
        keep_special: bool = False,
    ) -> Generation:
        """Begins a response; `sampling` must be resolved (chat.sampling), the adapter loaded and not yet unloaded.

        The logprob of each sampled token always comes, those of the likeliest `top_logprobs` beside it. With
        `keep_special` special tokens stay in the text, for parsers that look for them. Cached prefixes are shared
        within a tenant only. Raises ResourceExhausted when the engine's queue is full, Unavailable when it is dead, and
        InvalidInput when no grammar can be made.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed if sampling.HasField("seed") else None,
            stop=list(sampling.stop) or None,
            ignore_eos=self._options.ignore_end,
            logprobs=top_logprobs,
            flat_logprobs=True,
            structured_outputs=None if grammar is None else _structured(grammar),
            skip_special_tokens=not keep_special,
            output_kind=RequestOutputKind.DELTA if streaming else RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        return await self._begin(prompt_token_ids, parameters, tenant=tenant, adapter=adapter, most_top=top_logprobs)

    async def score(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], *, adapter: Adapter | None
    ) -> list[float]:
        """Natural log-probability of each output token given what is before it, at temperature 1."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        sequence = [*prompt_token_ids, *output_token_ids]
        generation = await self._begin(sequence, parameters, tenant="", adapter=adapter)
        try:
            output = await generation._queue.get()
        finally:
            await generation.abort()
        positions = output.prompt_logprobs[len(prompt_token_ids) :]
        return [position[token].logprob for position, token in zip(positions, output_token_ids, strict=True)]

    async def warm_up(self, deadline_seconds: float) -> None:
        """The first use of each way of sampling compiles; raises DeadlineExceeded when that takes too long."""
        plain = event_pb2.Sampling(temperature=0, top_p=1, max_tokens=4)
        drawn = event_pb2.Sampling(temperature=0.8, top_p=1, max_tokens=4)
        narrowed = event_pb2.Sampling(temperature=0.8, top_p=0.9, top_k=40, presence_penalty=0.1, max_tokens=4)
        try:
            async with asyncio.timeout(deadline_seconds):
                for sampling in (plain, drawn, narrowed):
                    generation = await self.generate([0] * 32, sampling, tenant="", adapter=None, streaming=True)
                    while generation.finish_reason is None:
                        await generation.next_text()
        except TimeoutError:
            raise DeadlineExceeded(f"the engine was not warm after {deadline_seconds:g} s") from None

    async def probe(self, deadline_seconds: float) -> None:
        """Generates one token; raises DeadlineExceeded or Unavailable when it cannot."""
        sampling = event_pb2.Sampling(temperature=0, top_p=1, max_tokens=1)
        generation = None
        try:
            async with asyncio.timeout(deadline_seconds):
                generation = await self.generate([0], sampling, tenant="", adapter=None, streaming=False)
                await generation.next_text()
        except TimeoutError:
            raise DeadlineExceeded(f"the engine generated nothing in {deadline_seconds:g} s") from None
        finally:
            if generation is not None:
                await generation.abort()

    def adapter(self, policy_id: str, adapters: Path) -> Adapter:
        """A fresh id, name and folder below `adapters` for loading a policy; the caller fills the folder."""
        load = next(self._loads)
        return Adapter(policy_id, load, adapters / f"{policy_id}.{load}")

    async def load(self, adapter: Adapter) -> None:
        """Puts an adapter into the engine, before any request names it; running streams go on.

        Raises FailedPrecondition when the engine does not take it.
        """
        async with self._swapping():
            try:
                taken = await self._llm.add_lora(_lora_request(adapter))
            except Exception as error:
                if self.dead:
                    raise Unavailable("the engine has died") from error
                raise FailedPrecondition(f"the engine does not take {adapter.policy_id}: {type(error).__name__}") from (
                    error
                )
        if not taken:
            raise FailedPrecondition(f"the engine does not take {adapter.policy_id}")

    async def unload(self, adapter: Adapter) -> None:
        """Takes an adapter out; every stream that names it must have ended, or the engine would load it again."""
        async with self._swapping():
            await self._llm.remove_lora(adapter.load)

    @property
    def max_adapters(self) -> int:
        return self._options.max_loras

    @property
    def unfinished(self) -> int:
        """Requests that the engine has and has not ended."""
        return int(self._llm.output_processor.get_num_unfinished_requests())

    @property
    def dead(self) -> bool:
        """Whether vLLM knows that its core has ended."""
        return bool(self._llm.errored)

    @property
    def last_move_seconds(self) -> float:
        """When the core last reported a step, on the monotonic clock."""
        return self._moves.last_seconds

    def stopped(self) -> bool:
        """Whether one of the core's processes is gone or does not run (SIGSTOP, a debugger)."""
        try:
            return any(
                core.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)
                for core in self._cores
            )
        except psutil.NoSuchProcess:
            return True

    def stop(self) -> None:
        """Ends the core's processes; those that do not end in time are killed."""
        for core in self._cores:
            # A frozen process would not hear that it should end.
            with contextlib.suppress(psutil.Error):
                if core.status() == psutil.STATUS_STOPPED:
                    core.kill()
        self._llm.shutdown(timeout=_STOP_SECONDS)

    async def _begin(
        self, prompt_token_ids: list[int], parameters: Any, *, tenant: str, adapter: Adapter | None, most_top: int = 0
    ) -> Generation:
        from vllm.exceptions import GracefulHTTPError, VLLMClientError
        from vllm.inputs import tokens_input

        request_id = str(next(self._requests))
        begun_seconds = time.monotonic()
        try:
            queue = await self._llm.add_request(
                request_id,
                tokens_input(prompt_token_ids, cache_salt=tenant or None),
                parameters,
                lora_request=None if adapter is None else _lora_request(adapter),
            )
        except GracefulHTTPError as error:
            raise ResourceExhausted("the engine's queue is full", retry_after_seconds=1) from error
        except asyncio.CancelledError:
            # The core may have it already.
            await self._llm.abort(request_id)
            raise
        except Exception as error:
            if self.dead:
                raise Unavailable("the engine has died; it is being restarted", retry_after_seconds=10) from error
            if parameters.structured_outputs is not None and isinstance(error, ValueError | VLLMClientError):
                # What a grammar cannot express; vLLM's own words may quote the schema.
                raise InvalidInput("no grammar can be made of this schema", field="response_format") from None
            raise
        return Generation(self._llm, queue, begun_seconds, most_top)

    @contextlib.asynccontextmanager
    async def _swapping(self) -> Any:
        self.swaps_running += 1
        try:
            yield
        finally:
            self.swaps_running -= 1


def _logprobs_processor() -> Any:
    """vLLM's, without what it does beside: looking up each token's text took a third of the front end's time.

    Where only the sampled tokens' logprobs are asked for, these are a list of numbers, without ranks.
    """
    from vllm.v1.engine.logprobs import LogprobsProcessor

    class LeanLogprobsProcessor(LogprobsProcessor):  # type: ignore[misc]
        @classmethod
        def from_new_request(cls, tokenizer: Any, request: Any) -> Any:
            processor = super().from_new_request(None, request)
            if processor.num_logprobs == 0:
                processor.logprobs = []
            return processor

        def _update_sample_logprobs(self, logprobs_lists: Any) -> None:
            if self.num_logprobs == 0:
                self.logprobs.extend(logprobs_lists.logprobs[:, 0].tolist())
            else:
                super()._update_sample_logprobs(logprobs_lists)

    return LeanLogprobsProcessor


class _Moves:
    """Sees each step that the core reports, those that only read prompts included."""

    def __init__(self) -> None:
        self.last_seconds = time.monotonic()

    def logger(self) -> Any:
        """vLLM's Prometheus logger, the one place where vLLM tells of each step."""
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        moves = self

        class StepLogger(PrometheusStatLogger):  # type: ignore[misc]
            def record(
                self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
            ) -> None:
                moves.last_seconds = time.monotonic()
                if iteration_stats is not None:
                    # One for each token: vLLM's way took a tenth of the front end's time.
                    latencies = iteration_stats.inter_token_latencies_iter
                    observe_all(self.histogram_inter_token_latency[engine_idx], latencies)
                    iteration_stats.inter_token_latencies_iter = []
                super().record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)

        return StepLogger


class Dialect:
    """How a model writes tool calls and thoughts: vLLM's parsers for it, by the names that vLLM gives them.

    Raises NotFound for a name that vLLM does not know.
    """

    def __init__(self, model: Path, tool_parser: str, reasoning_parser: str) -> None:
        from transformers import AutoTokenizer
        from vllm.reasoning import ReasoningParserManager
        from vllm.tool_parsers import ToolParserManager

        # A call that cannot be read is content, and no event: the parsers' logs would quote it.
        logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)
        logging.getLogger("vllm.reasoning").setLevel(logging.CRITICAL)
        self._tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        try:
            self._tools = ToolParserManager.get_tool_parser(tool_parser) if tool_parser else None
            self._reasoning = (
                ReasoningParserManager.get_reasoning_parser(reasoning_parser) if reasoning_parser else None
            )
        except KeyError as error:
            raise NotFound(f"vLLM has no such parser: {error.args[0]}") from None

    def request(self, tools: Sequence[dict[str, Any]], choice: Any) -> Any:
        """What vLLM's parsers want to see: an OpenAI request with these tools."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        return ChatCompletionRequest(messages=[], tools=list(tools) or None, tool_choice=choice if tools else "none")

    def tool_parser(self, request: Any) -> Any:
        """A parser for one answer; None when the model has none."""
        return None if self._tools is None else self._tools(self._tokenizer, request.tools)

    def reasoning_parser(self) -> Any:
        """A parser for one answer; None when the model does not think aloud."""
        return None if self._reasoning is None else self._reasoning(self._tokenizer)

    def forced_call(self, tools: Sequence[dict[str, Any]], choice: Any) -> Grammar:
        """A grammar that leaves only calls of these tools; raises FailedPrecondition when the model's form has none."""
        strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in tools]
        request = self.request(strict, choice)
        parser = self.tool_parser(request)
        tag = None if parser is None else parser.get_structural_tag(request)
        if tag is None:
            raise FailedPrecondition("this model cannot be made to call a tool; let tool_choice be auto")
        form = tag.model_dump()
        for each in form["format"].get("tags", ()):
            if each["content"].get("type") == "json_schema":
                each["content"]["max_whitespace_cnt"] = _MOST_WHITESPACE
        return Grammar("structural_tag", json.dumps(form))


def _structured(grammar: Grammar) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    match grammar.kind:
        case "json_schema":
            return StructuredOutputsParams(json=grammar.text)
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "structural_tag":
            return StructuredOutputsParams(structural_tag=grammar.text)


def _lora_request(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"{adapter.policy_id}.{adapter.load}", adapter.load, str(adapter.folder))


def _prepare_environment(options: EngineOptions) -> None:
    """What vLLM reads from the environment, here and in its child processes."""
    os.environ.update(
        VLLM_NO_USAGE_STATS="1",
        VLLM_CONFIGURE_LOGGING="0",
        VLLM_LOGGING_LEVEL="WARNING",
        # A forked child would inherit gRPC's and torch's threads' locks.
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_CPU_KVCACHE_SPACE=str(options.kv_cache_gib),
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS=str(_threads(options)),
        HF_HUB_OFFLINE="1",
    )


def _threads(options: EngineOptions) -> int:
    return options.omp_threads or max(1, len(os.sched_getaffinity(0)) // 2)
