"""The inference service in this process: a real server on a free port, around the run's one engine."""

import contextlib
import copy
import functools
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2_grpc
from safetensors.numpy import save_file

from attune import rpc
from attune.chat.model import model_hash
from attune.chat.template import ChatTemplate
from attune.eventlog.log import FEEDBACK, RESPONSES
from attune.eventlog.sqlite import SqliteLog
from attune.inference.admission import Admission
from attune.inference.capture import Hashes
from attune.inference.chat import Chat
from attune.inference.engine import Dialect, Engine
from attune.inference.feedback import Feedback
from attune.inference.http.app import Limits, build_app
from attune.inference.http.server import HttpServer, bind
from attune.inference.idempotency import Idempotency
from attune.inference.imports import Imports
from attune.inference.main import InferenceServer
from attune.inference.parsing import Parsing
from attune.inference.policies import Policies
from attune.inference.quota import Quotas
from attune.inference.structured import Grammars
from attune.keys import Keys, PolicySigner
from attune.personas import Personas
from attune.personas.api_keys import KeyStore
from attune.registry.policies import PolicyManifest, Probe, Registry
from attune.registry.rollouts import RolloutEntry, RolloutLog
from attune.registry.verdict import Verdict
from attune.settings import Settings, TenantSettings
from attune.v1 import chat_pb2, chat_pb2_grpc, event_pb2, feedback_pb2_grpc
from tests.keyed import key_store, keyed_channel
from tests.persona_files import personas_of, stored

PERSONA_TEXTS = {
    "concierge": 'system_prompt = "You are the concierge of a hotel. Answer in few words."\nsampling.max_tokens = 64\n',
    "tutor": 'system_prompt = "You are a patient tutor. Explain kindly and step by step."\nsampling.max_tokens = 64\n',
}
PERSONAS = personas_of(PERSONA_TEXTS)


def user(*contents: str) -> list[event_pb2.Message]:
    return [event_pb2.Message(role=event_pb2.ROLE_USER, content=content) for content in contents]


def ask(content: str = "hello there", persona: str = "", **sampling: Any) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(
        persona=persona, messages=user(content), sampling=event_pb2.Sampling(**sampling), end_user_id="u-1"
    )


def endless(engine: Engine) -> Engine:
    """The same engine, with answers that go on to max_tokens."""
    other = copy.copy(engine)
    other._options = replace(engine._options, ignore_end=True)
    return other


@functools.cache
def dialect(model: Path) -> Dialect:
    return Dialect(model, "hermes", "")


@functools.cache
def grammars(model: Path) -> Grammars:
    """One for all houses: it remembers nothing of who asked, and its process takes seconds to start."""
    return Grammars(model)


@dataclass
class House:
    """One service and what is behind it."""

    folder: Path
    server: InferenceServer
    grpc_server: rpc.Server
    chat: Chat
    personas: Personas
    policies: Policies
    log: SqliteLog
    keys: Keys
    registry: Registry
    rollouts: RolloutLog
    signer: PolicySigner
    engine: Engine
    base_model_hash: str
    channel: grpc.aio.Channel
    port: int
    access: KeyStore
    api_key: str
    http_port: int
    stub: Any = field(init=False)
    feedback: Any = field(init=False)
    health: Any = field(init=False)

    def __post_init__(self) -> None:
        self.stub = chat_pb2_grpc.ChatServiceStub(self.channel)
        self.feedback = feedback_pb2_grpc.FeedbackServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        folder: Path,
        engine: Engine,
        template: ChatTemplate,
        demo_model: Path,
        *,
        max_concurrent: int = 64,
        max_log_bytes: int = 64 << 20,
        max_tokens: int = 1 << 20,
        stall_seconds: float = 30,
        tenants: Mapping[str, TenantSettings] | None = None,
        cors_origins: tuple[str, ...] = ("https://app.example.org",),
    ) -> "AsyncIterator[House]":
        keys = Keys.load_or_create(folder / "keys")
        signer = PolicySigner.load_or_create(folder / "keys")
        registry = Registry(folder / "registry", signer.verifier())
        rollouts = RolloutLog(folder / "registry")
        log = SqliteLog(folder / "spool", max_bytes=max_log_bytes, readers=["aggregator"], feedback_share=0.1)
        base_model_hash = model_hash(demo_model)
        access, api_key = key_store(folder)
        known = stored(folder, PERSONA_TEXTS)
        idempotency = Idempotency(folder / "idempotency.sqlite", keep_hours=1, most_answers=1000)
        policies = Policies(
            engine,
            registry,
            rollouts,
            known,
            base_model_hash=base_model_hash,
            adapters=folder / "adapters",
        )
        chat = Chat(
            engine=engine,
            template=template,
            policies=policies,
            log=log,
            keys=keys,
            personas=known,
            hashes=Hashes(base_model_hash, template.tokenizer_hash, template.hash),
            admission=Admission(max_concurrent, max_tokens),
            quotas=Quotas(),
            idempotency=idempotency,
            parsing=Parsing(dialect(demo_model)),
            grammars=grammars(demo_model),
            tenants=tenants or {},
            feedback_token_seconds=3600,
        )
        grpc_server = rpc.Server(access, max_message_bytes=1 << 20)
        port = grpc_server.bind("127.0.0.1", 0, None)
        feedback = Feedback(log, keys, known, idempotency)
        listening = bind("127.0.0.1", 0)
        app = build_app(
            chat,
            feedback,
            known,
            access,
            limits=Limits(1 << 20, stall_seconds),
            cors_origins=cors_origins,
        )
        server = InferenceServer(
            grpc_server,
            HttpServer(app, listening),
            chat=chat,
            feedback=feedback,
            imports=Imports(log, keys, known, idempotency),
            stall_seconds=stall_seconds,
        )
        await server.open()
        try:
            async with keyed_channel(f"127.0.0.1:{port}", api_key) as channel:
                yield cls(
                    folder=folder,
                    server=server,
                    grpc_server=grpc_server,
                    chat=chat,
                    personas=known,
                    policies=policies,
                    log=log,
                    keys=keys,
                    registry=registry,
                    rollouts=rollouts,
                    signer=signer,
                    engine=engine,
                    base_model_hash=base_model_hash,
                    channel=channel,
                    port=port,
                    access=access,
                    api_key=api_key,
                    http_port=listening.getsockname()[1],
                )
        finally:
            await server.close(grace_seconds=5)
            await policies.unload_all()
            idempotency.close()
            log.close()

    def responses(self) -> list[event_pb2.ResponseEvent]:
        return [
            event_pb2.ResponseEvent.FromString(record.payload)
            for record in self.log.read(RESPONSES, 0, 0, 10_000, 1 << 30)
        ]

    def thumbs(self) -> list[event_pb2.FeedbackEvent]:
        return [
            event_pb2.FeedbackEvent.FromString(record.payload)
            for record in self.log.read(FEEDBACK, 0, 0, 10_000, 1 << 30)
        ]

    async def stream(self, request: chat_pb2.ChatRequest) -> list[chat_pb2.ChatChunk]:
        return [chunk async for chunk in self.stub.StreamChat(request, timeout=60)]

    async def publish(
        self,
        adapter: Path,
        *,
        persona: str = "concierge",
        passed: bool | None = True,
        base_model_hash: str | None = None,
        probe: tuple[Probe, ...] | None = None,
    ) -> str:
        """A signed policy with its verdict; its probe is right unless another is given."""
        policy_id = self.registry.claim("default", persona)
        manifest = PolicyManifest(
            policy_id=policy_id,
            tenant="default",
            persona=persona,
            base_model_hash=base_model_hash or self.base_model_hash,
            parent_policy_id="",
            dataset_ids=("d-1",),
            created_unix_ms=time.time_ns() // 1_000_000,
            training={},
            metrics={},
            probe=(reference_probe(adapter),) if probe is None else probe,
        )
        self.registry.publish(manifest, adapter, self.signer)
        if passed is not None:
            self.registry.write_verdict(Verdict(policy_id, passed, (), manifest.created_unix_ms), self.signer)
        return policy_id

    def roll_out(self, *shares: tuple[str, float], persona: str = "concierge") -> None:
        newest = self.rollouts.current("default", persona)
        self.rollouts.append(
            RolloutEntry(
                number=1 if newest is None else newest.number + 1,
                tenant="default",
                persona=persona,
                shares=shares,
                author="gate",
                reason="",
                created_unix_ms=time.time_ns() // 1_000_000,
            )
        )


def write_adapter(folder: Path, model: Path, *, seed: int, scale: float = 0.05) -> Path:
    """A LoRA adapter on every layer's query and output projections, as PEFT writes it, with random weights."""
    config = json.loads((model / "config.json").read_text())
    hidden, rank = config["hidden_size"], 8
    random = np.random.default_rng(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name in ("q_proj", "o_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = random.normal(0, scale, (rank, hidden)).astype(np.float32)
            weights[f"{prefix}.lora_B.weight"] = random.normal(0, scale, (hidden, rank)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": str(model),
                "r": rank,
                "lora_alpha": 2 * rank,
                "lora_dropout": 0.0,
                "bias": "none",
                "target_modules": ["q_proj", "o_proj"],
            }
        )
    )
    return folder


_TEMPLATE = ChatTemplate.load(Settings().model_folder)
PROBE_PROMPT = tuple(_TEMPLATE.render("You are a concierge. Be brief.", user("What is the capital of France?")))
PROBE_OUTPUT = tuple(_TEMPLATE._tokenise("Paris. My pleasure, Anna. Your cab is on its way."))


def reference_probe(adapter: Path) -> Probe:
    """What transformers and PEFT say of the adapter, without vLLM."""
    return Probe(PROBE_PROMPT, PROBE_OUTPUT, reference_logprobs(adapter), reference_logprobs(adapter, off=True))


def reference_logprobs(
    adapter: Path, *, prompt: Sequence[int] = PROBE_PROMPT, output: Sequence[int] = PROBE_OUTPUT, off: bool = False
) -> tuple[float, ...]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if not off:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *output]])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(output)[:, None])[:, 0]
    return tuple(logprobs.tolist())
