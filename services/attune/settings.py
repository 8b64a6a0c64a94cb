"""Settings: one TOML file, overridden by the environment (`ATTUNE_INFERENCE__GRPC_PORT=50061`).

They are read where a process starts and passed on as plain arguments. An unknown key or a value out of range stops the
start, with the file or variable, the key and the reason; values are never printed, for some are secrets.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from attune.errors import AttuneError

PREFIX = "ATTUNE_"
API_KEY_VARIABLE = "ATTUNE_API_KEY"  # no setting: what commands present to a server
_PATTERN_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MOST_FILE_BYTES = 1 << 20
_TAKEN_KINDS = frozenset({"mail", "phone", "card", "iban", "ip", "key", "unread"})
_DEMO = Path(__file__).parent / "rehearsal" / "demo"


class SettingsError(AttuneError):
    """The settings cannot be used."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class TlsSettings(_Section):
    """TLS of everything that listens; without a certificate plain text. Files are read again when they change."""

    certificate: Path | None = Field(None, description="The server's certificate and those above it, PEM.")
    key: Path | None = Field(None, description="Its private key, RSA or EC, without a passphrase, PEM.")
    client_ca: Path | None = Field(
        None, description="Who signs clients' certificates, PEM: with it nobody gets in without one."
    )

    @model_validator(mode="after")
    def _whole(self) -> "TlsSettings":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together; set both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        return self


class ClientSettings(_Section):
    """How attune's own commands connect to services."""

    ca: Path | None = Field(
        None, description="Whom to trust, PEM; absent: tls.certificate, and elsewhere the well-known authorities."
    )
    certificate: Path | None = Field(None, description="What they show where tls.client_ca is set, PEM.")
    key: Path | None = Field(None, description="Its private key, PEM.")
    server_name: str = Field("", description="The name in the server's certificate, where it is not the address's.")
    plain_text: bool = Field(False, description="Whether an API key may go to another machine in plain text.")

    @model_validator(mode="after")
    def _whole(self) -> "ClientSettings":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together; set both or neither")
        if self.plain_text and (self.ca or self.certificate or self.server_name):
            raise ValueError("plain_text leaves no use for ca, certificate and server_name; set one or the other")
        return self


class InferenceSettings(_Section):
    """The inference service."""

    host: str = Field("127.0.0.1", description="Address that chat and feedback listen on.")
    grpc_port: int = Field(50051, ge=0, le=65535, description="Chat and feedback; 0 takes a free port.")
    http_port: int = Field(8000, ge=0, le=65535, description="OpenAI-compatible HTTP; 0 takes a free port.")
    cors_origins: tuple[str, ...] = Field(
        (), description="Web pages that browsers may call HTTP from, such as https://app.example.org."
    )
    metrics_port: int = Field(9101, ge=0, le=65535, description="Prometheus page; 0 takes a free port.")
    max_concurrent_requests: int = Field(
        256, ge=1, le=65536, description="Answers generated at once, each alternative one; more calls are refused."
    )
    max_message_bytes: int = Field(1 << 20, ge=1 << 12, le=1 << 26, description="Largest gRPC message taken, bytes.")
    max_concurrent_tokens: int = Field(
        1 << 20, ge=1, description="Tokens that running chat calls may read and write together; more are refused."
    )
    idempotency_hours: float = Field(
        24, gt=0, le=8760, description="How long an answer is kept under the client's request id."
    )
    idempotency_answers: int = Field(100_000, ge=1, description="Most answers kept; the oldest go first.")
    grace_seconds: float = Field(10, ge=0, le=600, description="How long running streams may go on after SIGTERM.")
    feedback_token_days: float = Field(30, gt=0, le=3650, description="How long a feedback token is good for.")


class TenantSettings(_Section):
    """One tenant: `[tenants.acme]`."""

    store: bool = Field(True, description="Whether exchanges are stored where a request does not say.")
    train: bool = Field(True, description="Whether policies may learn from them where a request does not say.")
    retention_days: float | None = Field(
        None, gt=0, le=36500, description="How long what is said is kept; absent: as privacy.retention_days."
    )


class EngineSettings(_Section):
    """vLLM."""

    max_model_len: int | None = Field(
        None, ge=16, description="Longest prompt plus answer, tokens; the model's own if absent."
    )
    max_num_seqs: int = Field(64, ge=1, le=4096, description="Responses generated at once.")
    max_loras: int = Field(
        4, ge=1, le=64, description="Policies in the engine at once: personas x (incumbent + candidate)."
    )
    max_lora_rank: int = Field(16, ge=1, le=512, description="Largest adapter rank.")
    kv_cache_gib: int = Field(1, ge=1, le=4096, description="KV cache on CPU, GiB.")
    gpu_memory_utilization: float = Field(0.85, gt=0, lt=1, description="Share of GPU memory that the engine takes.")
    omp_threads: int = Field(0, ge=0, le=1024, description="Threads of the engine on CPU; 0: half the cores.")
    enforce_eager: bool = Field(True, description="No compilation: quick start; turn off on GPUs for speed.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Number format of the weights; auto: as they were saved."
    )
    tool_parser: str = Field(
        "hermes", description="How the model writes tool calls, by vLLM's names; empty: it cannot."
    )
    reasoning_parser: str = Field("", description="How it marks its thoughts, by vLLM's names; empty: it has none.")


class EventLogSettings(_Section):
    """The spool."""

    max_mib: int = Field(512, ge=1, le=1 << 20, description="Space for records and reservations, MiB.")
    feedback_share: float = Field(0.1, ge=0.01, le=0.5, description="Share of the space kept for feedback.")
    readers: tuple[str, ...] = Field(
        (), description="Readers that hold back trimming, beside the one that carries the records on."
    )


class KafkaSettings(_Section):
    """Kafka between the spool and the aggregator; without servers the spool is the whole event log."""

    servers: tuple[str, ...] = Field((), description="Brokers to begin with, HOST:PORT; more are found through them.")
    topic_prefix: str = Field(
        "attune.",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description="Begins the names of topics and of the consumer group.",
    )
    partitions: int = Field(8, ge=1, le=10_000, description="Of each topic that `attune topics create` makes.")
    replication: int | None = Field(None, ge=1, le=100, description="Copies of it; absent: as the brokers do.")
    retention_days: float = Field(14, gt=0, le=3650, description="How long topics keep a record.")
    dead_letter_retention_days: float = Field(90, gt=0, le=3650, description="How long dead letters are kept.")
    max_record_mib: int = Field(16, ge=1, le=64, description="Largest record; no larger one is admitted.")
    request_seconds: float = Field(5, ge=0.2, le=300, description="How long a broker may take to answer.")
    delivery_seconds: float = Field(
        30, ge=0.5, le=3600, description="A record that is not taken within that time is sent again."
    )
    tls: bool = Field(False, description="Whether connections are encrypted.")
    ca: Path | None = Field(None, description="Certificates that brokers' are signed by, PEM; absent: the system's.")
    certificate: Path | None = Field(None, description="Our certificate, where brokers ask for one, PEM.")
    key: Path | None = Field(None, description="Its key, PEM.")
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "", description="How to log in; empty: not at all."
    )
    username: str = Field("", description="Who logs in.")
    password: SecretStr = Field(SecretStr(""), description="Best given as ATTUNE_KAFKA__PASSWORD.")

    @field_validator("servers", mode="before")
    @classmethod
    def _separate(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("servers")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for server in value:
            host, _, port = server.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
                raise ValueError("each must be HOST:PORT, such as kafka-1.example.org:9092")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> "KafkaSettings":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        if not self.tls and (self.ca or self.certificate):
            raise ValueError("ca, certificate and key are for tls = true")
        if bool(self.sasl_mechanism) != bool(self.username):
            raise ValueError("sasl_mechanism and username go together")
        if self.request_seconds > self.delivery_seconds:
            raise ValueError("request_seconds may not be above delivery_seconds")
        return self


class BrokerSettings(_Section):
    """A Kafka broker of our own, for one machine: `attune up --with-kafka`."""

    enabled: bool = Field(False, description="Whether `attune up` runs it; kafka.servers then names it.")
    host: str = Field("127.0.0.1", description="Address of the broker and of the metrics page.")
    port: int = Field(9092, ge=1, le=65535, description="Where it listens.")
    metrics_port: int = Field(9107, ge=0, le=65535, description="Prometheus page; 0 takes a free port.")


class ShipperSettings(_Section):
    """Spool to Kafka, beside each inference; runs only where kafka.servers is set."""

    host: str = Field("127.0.0.1", description="Address of the metrics page.")
    metrics_port: int = Field(9106, ge=0, le=65535, description="Prometheus page; 0 takes a free port.")
    batch_records: int = Field(1000, ge=1, le=100_000, description="Most records on their way at once.")


RecipeName = Literal["demonstrations", "pairs", "prompts", "recovery", "rewards", "thumbs"]
_Weight = Annotated[float, Field(ge=-1, le=1)]


class RewardSettings(_Section):
    """What signals are worth to the recipe `rewards`: -1 to 1."""

    implicit: dict[Literal["abandoned", "copied", "edited", "regenerated"], _Weight] = Field(
        {"copied": 0.5, "edited": -0.25, "regenerated": -0.5, "abandoned": -0.25}, description="By what a person did."
    )
    outcomes: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")], _Weight] = Field(
        {}, description="By the outcome's name: a true one counts so much, a false one as much the other way."
    )


class LakeSettings(_Section):
    """The tables that everything is learned from: in the data folder, or in an S3-compatible object store."""

    url: str = Field(
        "",
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._=-]+)*/?)?$",
        description="s3://BUCKET/PREFIX; empty: the folder `lake` in the data folder.",
    )
    endpoint: str = Field(
        "", pattern=r"^(https?://\S+)?$", description="The store's address; empty: Amazon's of the region."
    )
    region: str = Field("us-east-1", min_length=1, description="The store's region.")
    access_key_id: str = Field("", description="Who writes; empty: as AWS_ACCESS_KEY_ID or the machine's role says.")
    secret_access_key: SecretStr = Field(SecretStr(""), description="Best given as ATTUNE_LAKE__SECRET_ACCESS_KEY.")
    request_seconds: float = Field(
        20, ge=1, le=300, description="How long the store may take over a request, tries together."
    )
    history_hours: int = Field(
        6, ge=1, le=8760, description="How long replaced files and earlier versions of the tables are kept."
    )
    optimize_minutes: float = Field(
        60, ge=1, le=10_080, description="Pause between rounds that merge small files and delete what is not kept."
    )

    @model_validator(mode="after")
    def _goes_together(self) -> "LakeSettings":
        if bool(self.access_key_id) != bool(self.secret_access_key.get_secret_value()):
            raise ValueError("access_key_id and secret_access_key go together")
        if not self.url and (self.endpoint or self.access_key_id):
            raise ValueError("endpoint and access_key_id are for a url that begins with s3://")
        return self


class TrustSettings(_Section):
    """How much each row of a dataset counts; part of what a dataset is made by."""

    enabled: bool = Field(True, description="Whether rows are weighed at all.")
    person_times: float = Field(
        4, gt=1, le=1e6, description="Most that one person weighs, in times of what people weigh on average."
    )
    conversation_weight: float = Field(
        10, gt=0, le=1e9, description="Most that one conversation weighs, in rows of the weight 1."
    )
    person_in_cluster_weight: float = Field(
        4, gt=0, le=1e9, description="Most that one person weighs in one prompt cluster, in rows of the weight 1."
    )
    cluster_share: float = Field(0.2, gt=0, le=1, description="Most that one prompt cluster weighs, of all rows.")
    coordinated_seconds: tuple[Annotated[float, Field(ge=1, le=86_400)], ...] = Field(
        (60, 600, 3600),
        max_length=8,
        description="Windows in which people who say the same are looked for; none: they are not.",
    )
    reviewers_agreement: bool = Field(
        False, description="Whether reviewers count by how they agree with each other (Dawid and Skene)."
    )


class AggregatorSettings(_Section):
    """Event log to lake to datasets."""

    host: str = Field("127.0.0.1", description="Address that receipts are served on.")
    grpc_port: int = Field(50052, ge=0, le=65535, description="Receipts; 0 takes a free port.")
    metrics_port: int = Field(9102, ge=0, le=65535, description="Prometheus page; 0 takes a free port.")
    poll_seconds: float = Field(0.5, gt=0, le=3600, description="Pause when the event log has nothing new.")
    batch_records: int = Field(8000, ge=1, le=1_000_000, description="Most records in one commit; 16 MiB end it too.")
    lease_seconds: float = Field(
        15, ge=1, le=3600, description="How long an aggregator that died keeps others from building."
    )
    build_feedback: int = Field(1000, ge=1, description="New signals of a persona that start a dataset.")
    window_days: float = Field(30, gt=0, le=3650, description="How far back a dataset reaches.")
    heldout_share: float = Field(0.2, gt=0, lt=1, description="Share of end users whose feedback is never trained on.")
    recipes: tuple[RecipeName, ...] = Field(
        ("thumbs",), description="Which datasets are built of each persona; the trainer learns from thumbs."
    )
    persona_recipes: dict[str, tuple[RecipeName, ...]] = Field(
        {}, description="Which instead for a persona, by its name."
    )
    build_memory_mib: int = Field(
        2048, ge=256, le=1 << 20, description="Memory for a dataset's query, MiB; more feedback takes more."
    )
    build_threads: int = Field(2, ge=1, le=1024, description="Threads for building a dataset.")
    rewards: RewardSettings = RewardSettings()
    trust: TrustSettings = TrustSettings()


class PrivacySettings(_Section):
    """What of people is kept, and for how long."""

    scrub: bool = Field(True, description="Whether personal data and secrets are masked before the lake.")
    kinds: tuple[Literal["mail", "phone", "card", "iban", "ip", "key"], ...] = Field(
        ("mail", "phone", "card", "iban", "ip", "key"), description="What is looked for."
    )
    phone_regions: tuple[str, ...] = Field(
        ("US",), description="Where numbers without a country are from, such as US or DE."
    )
    patterns: dict[str, str] = Field(
        {}, description="Your own regular expressions, by the word that takes their place."
    )
    pattern_milliseconds: float = Field(
        50, gt=0, le=10_000, description="How long one of them may look at a text; then all of the text is masked."
    )

    retention_days: float | None = Field(
        None, gt=0, le=36500, description="How long what is said is kept in lake and datasets; absent: for ever."
    )
    withdraw_hours: float = Field(
        24,
        ge=0,
        le=8760,
        description="How long a policy that learned from somebody who was erased may go on serving while its successor "
        "is made; then what served before takes over.",
    )

    @field_validator("phone_regions")
    @classmethod
    def _known_regions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        import phonenumbers

        for region in value:
            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise ValueError(f"{region[:8]!r} is no region; they look like US or DE")
        return value

    @field_validator("patterns")
    @classmethod
    def _usable_patterns(cls, value: dict[str, str]) -> dict[str, str]:
        import regex

        for name, pattern in value.items():
            if not _PATTERN_NAME.fullmatch(name) or name in _TAKEN_KINDS:
                raise ValueError(
                    f"{name[:32]!r} cannot be a pattern's name: 1 to 32 of a-z, 0-9, - and _, none of ours"
                )
            try:
                compiled = regex.compile(pattern)
            except regex.error as error:
                raise ValueError(f"{name}: not a regular expression: {error}") from None
            if compiled.fullmatch(""):
                raise ValueError(f"{name}: it matches where there is nothing")
        return value


class KtoSettings(_Section):
    """Kahneman-Tversky optimisation with a likelihood anchor, on a LoRA adapter."""

    learning_rate: float = Field(5e-6, gt=0, le=1, description="Of AdamW, after the warm-up.")
    beta: float = Field(0.1, gt=0, le=100, description="How strongly the policy is held to the base.")
    anchor: float = Field(0.2, ge=0, le=100, description="Weight of the negative log-likelihood of liked responses.")
    epochs: float = Field(2, gt=0, le=100, description="Passes over the dataset.")
    batch_size: int = Field(32, ge=2, le=4096, description="Examples in one optimiser step.")
    lora_rank: int = Field(16, ge=1, le=512, description="At most what the engine takes.")
    lora_alpha: int = Field(32, ge=1, le=4096, description="The adapter's scale, times the rank.")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")


class GateSettings(_Section):
    """What a candidate must show before it may serve."""

    min_train: int = Field(50, ge=1, description="Fewest training examples.")
    min_heldout: int = Field(20, ge=2, description="Fewest held-out examples.")
    min_share_of_label: float = Field(0.05, ge=0, lt=0.5, description="Least share of either label.")
    enough_approval: float = Field(
        0.9, gt=0, le=1, description="Little is left to learn once approval of the serving policy is surely above this."
    )
    max_liked_drop_nats: float = Field(
        0.05, ge=0, description="Largest fall of liked answers' log-probability a token."
    )
    max_skill_drop: float = Field(0.03, ge=0, le=1, description="Largest fall of one skill's share of right answers.")
    max_skills_drop: float = Field(0.01, ge=0, le=1, description="Largest fall over all skills together.")
    prompts: Path | None = Field(None, description="The operator's own regression prompts, JSON lines.")


class TrainerSettings(_Section):
    """Datasets to policies."""

    host: str = Field("127.0.0.1", description="Address of the metrics page.")
    metrics_port: int = Field(9103, ge=0, le=65535, description="Prometheus page; 0 takes a free port.")
    poll_seconds: float = Field(1, gt=0, le=3600, description="Pause between looks for a new dataset.")
    nice: int = Field(10, ge=0, le=19, description="Added niceness, so that chat stays quick on the same machine.")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0: half the cores.")
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed and data give the same policy.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Number format that training computes in.")
    replay: Path | None = Field(
        None, description="The operator's own prompts with right answers that training goes over again, JSON lines."
    )
    replay_share: float = Field(
        0.25, ge=0, le=4, description="How many of them go with the feedback, as a share of its examples."
    )
    mlflow_uri: str | None = Field(None, description="MLflow tracking; absent: mlflow.db in the data folder.")
    kto: KtoSettings = KtoSettings()
    gate: GateSettings = GateSettings()


class RolloutSettings(_Section):
    """Verdicts to traffic."""

    host: str = Field("127.0.0.1", description="Address that policies and rollouts are served on.")
    grpc_port: int = Field(50054, ge=0, le=65535, description="Policies and rollouts; 0 takes a free port.")
    metrics_port: int = Field(9104, ge=0, le=65535, description="Prometheus page; 0 takes a free port.")
    poll_seconds: float = Field(0.5, gt=0, le=3600, description="Pause between looks for new verdicts.")


class SupervisorSettings(_Section):
    """`attune up`."""

    restart_backoff_seconds: float = Field(
        0.5, gt=0, le=60, description="First pause before a restart; doubles to 30 s."
    )
    start_seconds: float = Field(
        300, gt=0, le=3600, description="How long a service may take to be ready before it is started anew."
    )
    silent_seconds: float = Field(
        30, gt=0, le=3600, description="A service that has not been well for so long is killed and started anew."
    )
    stop_seconds: float = Field(
        20, gt=0, le=600, description="How long a service may take to stop before it is killed."
    )


class Settings(_Section):
    """All of it. Relative paths are relative to the folder that attune is started in."""

    data: Path = Field(
        Path("attune-data"), validate_default=True, description="The one folder that everything is kept in."
    )
    model: str = Field("demo", description="The base model's folder in transformers' format, or `demo`.")
    personas: str = Field(
        "demo", description="Folder of <persona>.toml files that a new data folder begins with, or `demo`."
    )
    default_persona: str = Field("concierge", description="Who answers when a request names nobody.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="What is written to the logs.")
    inference: InferenceSettings = InferenceSettings()
    engine: EngineSettings = EngineSettings()
    event_log: EventLogSettings = EventLogSettings()
    kafka: KafkaSettings = KafkaSettings()
    shipper: ShipperSettings = ShipperSettings()
    broker: BrokerSettings = BrokerSettings()
    lake: LakeSettings = LakeSettings()
    aggregator: AggregatorSettings = AggregatorSettings()
    privacy: PrivacySettings = PrivacySettings()
    trainer: TrainerSettings = TrainerSettings()
    rollout: RolloutSettings = RolloutSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
    tls: TlsSettings = TlsSettings()
    client: ClientSettings = ClientSettings()
    tenants: dict[str, TenantSettings] = Field({}, description="What holds for a tenant, by its name.")

    @field_validator("tenants")
    @classmethod
    def _named(cls, value: dict[str, TenantSettings]) -> dict[str, TenantSettings]:
        if not all(_TENANT_NAME.fullmatch(name) for name in value):
            raise ValueError(
                "a tenant's name has 1 to 63 lower-case letters, digits and dashes, and begins with no dash"
            )
        return value

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def model_folder(self) -> Path:
        return _DEMO / "model" if self.model == "demo" else Path(self.model).expanduser().absolute()

    @property
    def personas_folder(self) -> Path:
        return _DEMO / "personas" if self.personas == "demo" else Path(self.personas).expanduser().absolute()

    @property
    def spool_readers(self) -> tuple[str, ...]:
        """Who holds back trimming of the spool: whoever carries its records on, and whom the operator named."""
        return tuple(dict.fromkeys(("shipper" if self.kafka.servers else "aggregator", *self.event_log.readers)))

    @property
    def mlflow_uri(self) -> str:
        return self.trainer.mlflow_uri or f"sqlite:///{self.data / 'mlflow.db'}"


def load_settings(config: Path | None, environment: dict[str, str] | None = None) -> Settings:
    """Reads the file (none: defaults) and the environment, which wins.

    Raises SettingsError that names each bad key, where it stands and why.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            with config.open("rb") as stream:
                content = stream.read(_MOST_FILE_BYTES + 1)
            if len(content) > _MOST_FILE_BYTES:
                raise SettingsError(f"{config}: has more than {_MOST_FILE_BYTES} bytes, which is the limit")
            values = tomllib.loads(content.decode())
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"{config}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
            ) from None
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{config}: not valid TOML: {error}") from None
        except RecursionError:
            raise SettingsError(f"{config}: not valid TOML: nested too deep") from None
    overridden: dict[tuple[str, ...], str] = {}
    for name, text in (os.environ if environment is None else environment).items():
        if name.startswith(PREFIX) and name != API_KEY_VARIABLE:
            path = tuple(name.removeprefix(PREFIX).lower().split("__"))
            _put(values, path, _value(text), name)
            overridden[path] = name
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_complaint(problem, config, overridden) for problem in error.errors())) from None


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any, name: str) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise SettingsError(f"environment variable {name}: {part} is not a section")
    values[path[-1]] = value


def _value(text: str) -> Any:
    """A TOML list or quoted string where it begins like one, else the text itself, which the setting's type reads."""
    if not text.startswith(("[", '"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _complaint(problem: Any, config: Path | None, overridden: dict[tuple[str, ...], str]) -> str:
    location = tuple(str(part) for part in problem["loc"])
    key = ".".join(location)
    for path, name in overridden.items():
        if location[: len(path)] == path[: len(location)]:
            return f"environment variable {name}: {key}: {_reason(problem)}"
    return f"{config or 'defaults'}: {key}: {_reason(problem)}"


def _reason(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "no such setting"
    message: str = problem["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
