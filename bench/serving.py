"""Measures serving: attune over gRPC and HTTP, vLLM's OpenAI server, bare AsyncLLM: `python bench/serving.py`.

The same model, engine flags, prompts (32 tokens as the engine gets them) and cores for all three; 32 to 96 tokens out,
64 on average, the same for the same prompt, for which all three are told to go on past the end of the answer. Each
client asks again as soon as its answer is there. Once more with 64 tokens for every answer, where all of them end at
one step and all begin at the next ("in step"). The engine and its front end are pinned to the first half of the cores,
the clients (two processes, which begin together) to the others; bare AsyncLLM has no clients but coroutines in its own
process. attune runs as installed: capture and durable log on, every answer acknowledged after its fsync. Bare AsyncLLM
and attune over gRPC are also asked for whole answers (unary), where only the final output is asked of the engine. "gRPC
alone" is a server of the same protocol with neither engine nor anything of attune's, which sends a token every few
milliseconds: what the transport costs by itself. One engine runs at a time; rounds are interleaved, and begin with
another engine each. Writes the section `Serving` of docs/measurements.md.
"""

# ruff: noqa: T201 - it talks to the terminal, and its processes to each other

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from attune.chat.template import ChatTemplate
from attune.personas.api_keys import local_api_key
from attune.runtime import read_endpoints
from attune.settings import API_KEY_VARIABLE, load_settings
from attune.v1 import chat_pb2, chat_pb2_grpc, event_pb2

PROMPT_TOKENS = 32
OUTPUT_TOKENS = 64
# Of the answers to each prompt; 64 on average.
LENGTHS = random.Random(1).sample([*range(32, 64), *range(65, 97)], 64)
PERSONA = "bench"
START_SECONDS = 300
STOP_SECONDS = 60
TEMPERATURE = 0.8

ENGINES = {
    "bare": "bare AsyncLLM",
    "openai": "vLLM's OpenAI server",
    "attune": "attune (gRPC)",
    "http": "attune (HTTP)",
    "grpc": "gRPC alone, no engine",
}
OURS = ("attune", "http")
ALONE_STEP_SECONDS = 0.005
# Asked for whole answers as well, in the same run of the same server.
WHOLE = ("bare", "attune")
# Ours, theirs: what is compared within a round.
PAIRS = (("attune", "bare"), ("attune", "openai"), ("http", "openai"))
IN_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
MODEL = load_settings(None).model_folder
API_KEY = os.environ.get(API_KEY_VARIABLE, "")
WORDS = tuple(
    re.findall(r"\w+", "what can you tell me about the river and the old town near here today please my friend")
)


@dataclass(frozen=True)
class Load:
    """How many ask at once, and for what."""

    clients: int
    # Whole answers, not streams.
    whole: bool = False
    # Every answer of one length, so that all end together.
    in_step: bool = False

    def __str__(self) -> str:
        return f"{self.clients}{', whole answers' if self.whole else ''}{', in step' if self.in_step else ''}"

    def output_tokens(self, number: int) -> int:
        """Of the answer to this request."""
        return OUTPUT_TOKENS if self.in_step else LENGTHS[number % len(LENGTHS)]


@dataclass(frozen=True)
class Answer:
    """One answer as its client saw it; seconds on the system-wide monotonic clock."""

    asked: float
    first: float
    ended: float
    tokens: int
    messages: int


@dataclass(frozen=True)
class Reading:
    """One engine under one load in one round."""

    tokens_per_second: float
    first_token_ms: float
    first_token_p95_ms: float
    front_us_per_token: float
    tokens_per_message: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    arguments.add_argument("--clients", nargs="+", type=int, default=[64, 1])
    arguments.add_argument("--requests", type=int, default=512, help="of all clients of a load together")
    arguments.add_argument("--threads", type=int, default=0, help="of the engine; 0: half of its cores")
    arguments.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "measurements.md")
    arguments.add_argument("--dry", action="store_true", help="print the section only")
    options = arguments.parse_args()

    server_cores, client_cores = halves()
    threads = options.threads or max(1, len(server_cores) // 2)
    os.environ.update(environment(threads))
    readings: dict[tuple[str, Load], list[Reading]] = {}
    for number in range(options.rounds):
        turn = number % len(options.engines)
        for name in (*options.engines[turn:], *options.engines[:turn]):
            with tempfile.TemporaryDirectory() as folder, running(name, Path(folder), server_cores) as server:
                loads = [Load(clients) for clients in options.clients]
                loads += [Load(max(options.clients), in_step=True)] if name != "grpc" else []
                loads += [Load(max(options.clients), whole=True)] if name in WHOLE else []
                for load in loads:
                    requests = max(options.requests // (8 if load.clients == 1 else 1), load.clients)
                    reading = server.measure(load, requests, client_cores)
                    readings.setdefault((name, load), []).append(reading)
                    print(f"round {number + 1}: {name}, clients: {load}: {asdict(reading)}", flush=True)
    section = report(readings, options.rounds, threads, len(server_cores), len(client_cores))
    print(section)
    if not options.dry:
        write_section(options.out, section)


class Server:
    """An engine with its front end, in a process of its own."""

    def __init__(self, name: str, folder: Path, cores: set[int]) -> None:
        self.name = name
        self.data = folder / "data"
        self._folder = folder
        self._address = ""
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if name == "bare" else self._log,
            stderr=self._log,
            env={**os.environ, **self._environment()},
            text=True,
        )
        # At once, before it has threads and children, which inherit it.
        psutil.Process(self._process.pid).cpu_affinity(list(cores))

    def _command(self) -> list[str]:
        if self.name in ("openai", "grpc"):
            self._port = free_port()
        match self.name:
            case "grpc":
                return [sys.executable, __file__, "serve-grpc", str(self._port)]
            case "openai":
                flags = itertools.chain.from_iterable(
                    (f"--{flag.replace('_', '-')}",) if value is True else (f"--{flag.replace('_', '-')}", str(value))
                    for flag, value in engine_flags().items()
                )
                return [
                    *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(self._port)),
                    *("--host", "127.0.0.1", "--disable-uvicorn-access-log", "--generation-config", "vllm"),
                    *flags,
                ]
            case name:
                return [sys.executable, __file__, "serve-attune" if name in OURS else f"serve-{name}"]

    def _environment(self) -> dict[str, str]:
        if self.name not in OURS:
            return {}
        personas = self._folder / "personas"
        personas.mkdir()
        (personas / f"{PERSONA}.toml").write_text('system_prompt = ""\n')
        return {
            "ATTUNE_DATA": str(self.data),
            "ATTUNE_PERSONAS": str(personas),
            "ATTUNE_DEFAULT_PERSONA": PERSONA,
            "ATTUNE_INFERENCE__GRPC_PORT": "0",
            "ATTUNE_INFERENCE__HTTP_PORT": "0",
            "ATTUNE_INFERENCE__METRICS_PORT": "0",
            "ATTUNE_ENGINE__OMP_THREADS": os.environ["OMP_NUM_THREADS"],
        }

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{self.name} did not start:\n{(self._folder / 'log').read_text()[-4000:]}")
            time.sleep(0.2)

    def _is_up(self) -> bool:
        if self.name == "bare":
            return _line(self._process) == "up"
        if self.name == "openai":
            self._address = f"127.0.0.1:{self._port}"
            return answers_http(self._port)
        if self.name == "grpc":
            self._address = f"127.0.0.1:{self._port}"
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return True
            return False
        with contextlib.suppress(Exception):
            endpoints = read_endpoints(self.data, "inference")
            self._address = f"127.0.0.1:{endpoints['grpc' if self.name == 'attune' else 'http']}"
            return True
        return False

    @property
    def front(self) -> psutil.Process:
        """The process that faces the clients; the engine's core is its child."""
        return psutil.Process(self._process.pid)

    def measure(self, load: Load, requests: int, cores: set[int]) -> Reading:
        """The requests are all clients' together."""
        with self._clients(load, requests, cores) as clients:
            for client in clients:  # each has made its connections then
                _line(client)
            before = self.front.cpu_times()
            for client in clients:
                _say(client, "go")
            answers = [Answer(*fields) for client in clients for fields in json.loads(_line(client))]
            after = self.front.cpu_times()
        tokens = sum(answer.tokens for answer in answers)
        if tokens != sum(map(load.output_tokens, range(requests))):
            sys.exit(f"{self.name} gave {tokens} tokens for {requests} requests")
        first_ms = sorted((answer.first - answer.asked) * 1000 for answer in answers)
        seconds = max(answer.ended for answer in answers) - min(answer.asked for answer in answers)
        return Reading(
            tokens_per_second=tokens / seconds,
            first_token_ms=statistics.median(first_ms),
            first_token_p95_ms=first_ms[int(len(first_ms) * 0.95)],
            front_us_per_token=(after.user + after.system - before.user - before.system) / tokens * 1e6,
            tokens_per_message=tokens / sum(answer.messages for answer in answers),
        )

    @contextlib.contextmanager
    def _clients(self, load: Load, requests: int, cores: set[int]) -> "Iterator[list[subprocess.Popen[str]]]":
        """Processes that ask: for bare AsyncLLM it is the engine's own."""
        if self.name == "bare":
            _say(self._process, json.dumps([asdict(load), requests]))
            yield [self._process]
            return
        count = min(2, load.clients)
        share = json.dumps([{**asdict(load), "clients": load.clients // count}, requests // count, prompts()])
        environment = {**os.environ, API_KEY_VARIABLE: local_api_key(self.data) if self.name in OURS else ""}
        processes = []
        for number in range(count):
            command = [sys.executable, __file__, f"ask-{self.name}", self._address, str(number)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            processes.append(subprocess.Popen(command, text=True, env=environment, **pipes))
            psutil.Process(processes[-1].pid).cpu_affinity(list(cores))
            _say(processes[-1], share)
        try:
            yield processes
        finally:
            for process in processes:
                process.communicate(timeout=60)

    def stop(self) -> None:
        """Returns once nothing of it is left."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._process.pid).children(recursive=True)
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            _, alive = psutil.wait_procs(children, timeout=5)
            for child in alive:
                child.kill()
            psutil.wait_procs(alive, timeout=5)
        self._log.close()


def _say(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


def _line(process: "subprocess.Popen[str]") -> str:
    """What it said; ends this run when it says no more."""
    assert process.stdout is not None
    return process.stdout.readline().strip() or sys.exit("a process ended early")


@contextlib.contextmanager
def running(name: str, folder: Path, cores: set[int]) -> Iterator[Server]:
    server = Server(name, folder, cores)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


# What each kind of process does.


async def serve_attune() -> None:
    from attune.inference.main import serve

    await serve(load_settings(None), ignore_end=True)


async def serve_grpc(port: int) -> None:
    import grpc

    class Alone(chat_pb2_grpc.ChatServiceServicer):
        async def StreamChat(self, request: chat_pb2.ChatRequest, context: Any) -> None:  # type: ignore[override]
            for number in range(request.sampling.max_tokens):
                begun = time.monotonic()
                await asyncio.sleep(ALONE_STEP_SECONDS)
                # The first says how long its token took, which is no cost of the transport.
                text = "word " if number else f"{time.monotonic() - begun}"
                await context.write(chat_pb2.ChatChunk(text=text, tokens=1))
            usage = chat_pb2.Usage(prompt_tokens=PROMPT_TOKENS, output_tokens=request.sampling.max_tokens)
            await context.write(chat_pb2.ChatChunk(end=chat_pb2.ResponseEnd(usage=usage)))

    server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(Alone(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def serve_bare() -> None:
    """Takes [load, requests] as lines, says what came of them."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_flags()))
    template = ChatTemplate.load(MODEL)
    rendered = [template.render("", [message(text)]) for text in prompts()]
    numbers = itertools.count()

    def client(load: Load) -> Any:
        async def ask(number: int) -> Answer:
            parameters = SamplingParams(
                temperature=TEMPERATURE,
                max_tokens=load.output_tokens(number),
                ignore_eos=True,
                logprobs=0,
                output_kind=RequestOutputKind.FINAL_ONLY if load.whole else RequestOutputKind.DELTA,
            )
            asked, first, tokens, messages = time.monotonic(), 0.0, 0, 0
            prompt = tokens_input(rendered[number % len(rendered)])
            async for output in engine.generate(prompt, parameters, str(next(numbers))):
                first = first or time.monotonic()
                tokens += len(output.outputs[0].token_ids)
                messages += 1
            return Answer(asked, first, time.monotonic(), tokens, messages)

        return ask

    print("up", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        fields, requests = json.loads(line)
        load = Load(**fields)
        tell(await clients_of([client(load)] * load.clients, requests))
    engine.shutdown(timeout=1)


async def ask_attune(
    address: str, load: Load, requests: int, texts: list[str], part: int, *, alone: bool = False
) -> list[Answer]:
    """`alone` is the transport without an engine: the first token's own time is taken off."""
    import grpc

    key = (("authorization", f"Bearer {API_KEY}"),) if API_KEY else None

    def request(number: int) -> chat_pb2.ChatRequest:
        sampling = event_pb2.Sampling(temperature=TEMPERATURE, max_tokens=load.output_tokens(number))
        return chat_pb2.ChatRequest(messages=[message(texts[number % len(texts)])], sampling=sampling)

    def whole_client(stub: Any) -> Any:
        async def ask(number: int) -> Answer:
            asked = time.monotonic()
            answer = await stub.Chat(request(number), metadata=key)
            ended = time.monotonic()
            usage = answer.responses[0].usage
            if usage.prompt_tokens != PROMPT_TOKENS:
                raise RuntimeError(f"a prompt of another length: {usage}")
            return Answer(asked, ended, ended, usage.output_tokens, 1)

        return ask

    def client(stub: Any) -> Any:
        async def ask(number: int) -> Answer:
            asked, first, tokens, messages = time.monotonic(), 0.0, 0, 0
            async for chunk in stub.StreamChat(request(number), metadata=key):
                if not first:
                    first = time.monotonic() - (float(chunk.text) if alone else 0)
                tokens += chunk.tokens
                messages += 1
            if not chunk.HasField("end") or chunk.end.usage.prompt_tokens != PROMPT_TOKENS:
                raise RuntimeError(f"not acknowledged, or of another length: {chunk}")
            return Answer(asked, first, time.monotonic(), tokens, messages)

        return ask

    async with contextlib.AsyncExitStack() as stack:
        # A connection for each client, as with HTTP.
        options = [("grpc.use_local_subchannel_pool", 1)]
        stubs = [
            chat_pb2_grpc.ChatServiceStub(
                await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            )
            for _ in range(load.clients)
        ]
        kind = whole_client if load.whole else client
        return await clients_of([kind(stub) for stub in stubs], requests, offset=part * requests)


async def ask_openai(address: str, load: Load, requests: int, texts: list[str], part: int) -> list[Answer]:
    """vLLM's server, or with a key ours: the same body but for what is told of each token."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(number: int) -> Answer:
            asked, first, usage, messages = time.monotonic(), 0.0, {}, 0
            body = {
                "model": PERSONA if API_KEY else str(MODEL),
                "messages": [{"role": "user", "content": texts[number % len(texts)]}],
                "temperature": TEMPERATURE,
                "max_tokens": load.output_tokens(number),
                "stream": True,
                "stream_options": {"include_usage": True},
                # Ours takes the log-probability of every token anyway, and was told to go on by its settings.
                **({} if API_KEY else {"ignore_eos": True, "logprobs": True, "top_logprobs": 0}),
            }
            headers = {"authorization": f"Bearer {API_KEY}"} if API_KEY else {}
            async with session.post(f"http://{address}/v1/chat/completions", json=body, headers=headers) as response:
                response.raise_for_status()
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    # vLLM's first event says only who speaks, in ours is the first token; the last has the usage.
                    if b'"usage":{' in line:
                        usage = json.loads(line[6:])["usage"]
                    elif first or json.loads(line[6:])["choices"][0]["delta"].get("content"):
                        first = first or time.monotonic()
                        messages += 1
            if usage["prompt_tokens"] != PROMPT_TOKENS:
                raise RuntimeError(f"a prompt of another length: {usage}")
            return Answer(asked, first, time.monotonic(), usage["completion_tokens"], messages)

        return await clients_of([ask] * load.clients, requests, offset=part * requests)


async def clients_of(clients: Sequence[Any], requests: int, offset: int = 0) -> list[Answer]:
    """Each client asks, waits for the whole answer, and asks again, until all requests were made.

    One answer each before that is not counted: it makes the connection. Then all wait for a line on standard input.
    """
    numbers = iter(range(offset, offset + requests))
    answers: list[Answer] = []
    await asyncio.gather(*(ask(offset + number) for number, ask in enumerate(clients)))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

    async def go(ask: Any) -> None:
        for number in numbers:
            answers.append(await ask(number))  # noqa: PERF401 - shared by all clients

    await asyncio.gather(*map(go, clients))
    return answers


def tell(answers: Sequence[Answer]) -> None:
    print(json.dumps([list(asdict(answer).values()) for answer in answers]), flush=True)


# What all of them share.


def halves() -> tuple[set[int], set[int]]:
    """Cores for the server and for the clients; the same ones where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    middle = (len(cores) + 1) // 2
    return set(cores[:middle]), set(cores[middle:] or cores)


def environment(threads: int) -> dict[str, str]:
    """As attune's engine sets it for itself."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }


def engine_flags() -> dict[str, Any]:
    """As attune's engine is set up by default."""
    return {
        "model": str(MODEL),
        "max_num_seqs": 64,
        "enforce_eager": True,
        "enable_lora": True,
        "max_loras": 4,
        "max_cpu_loras": 4,
        "max_lora_rank": 16,
        "logprobs_mode": "processed_logprobs",
        "distributed_executor_backend": IN_CORE,
    }


@functools.cache
def prompts() -> list[str]:
    """User messages that are 32 tokens long once the model's chat template is around them."""
    template = ChatTemplate.load(MODEL)
    found = []
    for start, step in itertools.product(range(len(WORDS)), (1, 5, 7, 11, 13, 17)):
        words = itertools.islice(itertools.cycle(WORDS), start, None, step)
        text, length = next(words), 0
        while length < PROMPT_TOKENS:
            text = f"{text} {next(words)}"
            length = len(template.render("", [message(text)]))
        if length == PROMPT_TOKENS:
            found.append(text)
        if len(found) == 64:
            return found
    sys.exit(f"only {len(found)} prompts of {PROMPT_TOKENS} tokens found")


def message(text: str) -> event_pb2.Message:
    return event_pb2.Message(role=event_pb2.ROLE_USER, content=text)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def answers_http(port: int) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


# The report.


def report(
    readings: dict[tuple[str, Load], list[Reading]], rounds: int, threads: int, server_cores: int, client_cores: int
) -> str:
    lines = [
        "## Serving",
        "",
        f"`make bench`, {time.strftime('%Y-%m-%d')}. {machine()}",
        f"Engine and front end on {server_cores} cores ({threads} engine threads), clients on {client_cores} others; "
        f"{PROMPT_TOKENS} tokens in, {min(LENGTHS)} to {max(LENGTHS)} out ({OUTPUT_TOKENS} each, in step), demo model, "
        f"LoRA enabled, `logprobs=0` everywhere; capture and durable log on in attune. {rounds} interleaved rounds: "
        "median (lowest to highest).",
        "",
        "| clients | server | tokens/s | time to first token, ms (median; p95) | front-end CPU a token, µs "
        "| tokens a message |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    order = list(ENGINES)
    loads = sorted({load for _, load in readings}, key=lambda load: (-load.clients, load.whole, load.in_step))
    for load in loads:
        for name in order:
            if of_rounds := readings.get((name, load)):
                first = f"{spread(of_rounds, 'first_token_ms', 1)}; {spread(of_rounds, 'first_token_p95_ms', 1)}"
                lines.append(
                    f"| {load} | {ENGINES[name]} | {spread(of_rounds, 'tokens_per_second', 0)} "
                    f"| {'–' if load.whole else first} | {spread(of_rounds, 'front_us_per_token', 0)} "
                    f"| {spread(of_rounds, 'tokens_per_message', 2)} |"
                )
    lines += [
        "",
        "Within a round, median with the 95 % interval of a bootstrap over rounds:",
        "",
        "| clients | what | tokens/s, ratio | front-end CPU a token, µs more | time to first token, ms more |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for load in loads:
        for ours, theirs in PAIRS:
            if (ours, load) in readings and (theirs, load) in readings:
                lines.append(compared(ours, theirs, load, readings[ours, load], readings[theirs, load]))
    return "\n".join(lines) + "\n"


def compared(ours: str, theirs: str, load: Load, one: Sequence[Reading], other: Sequence[Reading]) -> str:
    """What the rounds say together, whatever else the machine did meanwhile."""
    rounds = list(zip(one, other, strict=True))
    ratio = interval([a.tokens_per_second / b.tokens_per_second for a, b in rounds], 2)
    front = interval([a.front_us_per_token - b.front_us_per_token for a, b in rounds], 0)
    first = "–" if load.whole else interval([a.first_token_ms - b.first_token_ms for a, b in rounds], 1)
    return f"| {load} | {ENGINES[ours]} to {ENGINES[theirs]} | {ratio} | {front} | {first} |"


def interval(values: Sequence[float], digits: int) -> str:
    """The median, with the 95 % interval of a bootstrap."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2000))
    return f"{statistics.median(values):,.{digits}f} ({medians[50]:,.{digits}f} to {medians[-51]:,.{digits}f})"


def spread(rounds: Sequence[Reading], name: str, digits: int) -> str:
    values = [getattr(reading, name) for reading in rounds]
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def machine() -> str:
    from importlib.metadata import version

    import vllm

    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory_gib = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "grpcio", "protobuf"))
    return f"{model}, {memory_gib:.0f} GiB; Python {platform.python_version()}, vLLM {vllm.__version__}, {versions}."


def write_section(file: Path, section: str) -> None:
    """Replaces the section of the same heading, or adds it."""
    heading = section.partition("\n")[0]
    text = file.read_text() if file.exists() else "# Measurements\n"
    before, found, rest = text.partition(f"{heading}\n")
    after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    text = (
        f"{before.rstrip()}\n\n{section}" + (f"\n{after}" if after else "")
        if found
        else f"{text.rstrip()}\n\n{section}"
    )
    file.parent.mkdir(exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    shutil.move(draft, file)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve-bare"]:
            asyncio.run(serve_bare())
        case ["serve-attune"]:
            uvloop.run(serve_attune())
        case ["serve-grpc", port]:
            uvloop.run(serve_grpc(int(port)))
        case [role, address, part] if role.startswith("ask-"):
            fields, requests, texts = json.loads(sys.stdin.readline())
            share = address, Load(**fields), requests, texts, int(part)
            http = role in ("ask-http", "ask-openai")
            tell(asyncio.run(ask_openai(*share) if http else ask_attune(*share, alone=role == "ask-grpc")))
        case _:
            main()
