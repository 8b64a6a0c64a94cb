from pathlib import Path
from typing import get_args

import pytest

from attune.aggregator.build import BuildRules
from attune.aggregator.recipe import recipe_names
from attune.settings import RecipeName, Settings, SettingsError, load_settings

SECRET = "s3cret"


def refused(config: Path | None, environment: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as error:
        load_settings(config, environment)
    return error.value.message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "attune.toml"


def test_without_a_file_there_are_defaults() -> None:
    settings = load_settings(None, {})
    assert settings.data == Path("attune-data").absolute()
    assert settings.inference.grpc_port == 50051
    assert settings.mlflow_uri == f"sqlite:///{settings.data}/mlflow.db"
    assert (settings.model_folder / "config.json").is_file()
    assert (settings.personas_folder / "concierge.toml").is_file()


def test_the_environment_wins_over_the_file(file: Path) -> None:
    file.write_text("[inference]\ngrpc_port = 1\nmetrics_port = 2\n")
    settings = load_settings(file, {"ATTUNE_INFERENCE__GRPC_PORT": "3", "PATH": "/bin"})
    assert (settings.inference.grpc_port, settings.inference.metrics_port) == (3, 2)


@pytest.mark.parametrize("folder", ["/tmp/x", "/tmp/2026", "2026-11-21", "12", "true", "1e3", "/tmp/a b # c", "~/x"])
def test_a_folder_named_in_the_environment_is_that_folder_whatever_it_looks_like(folder: str) -> None:
    assert load_settings(None, {"ATTUNE_DATA": folder}).data == Path(folder).expanduser().absolute()


def test_the_environment_can_say_every_kind_of_value() -> None:
    settings = load_settings(
        None,
        {
            "ATTUNE_ENGINE__ENFORCE_EAGER": "false",
            "ATTUNE_TRAINER__KTO__LEARNING_RATE": "1e-3",
            "ATTUNE_TRAINER__GATE__PROMPTS": "/tmp/prompts.jsonl",
            "ATTUNE_EVENT_LOG__READERS": '["aggregator", "shipper"]',
            "ATTUNE_KAFKA__SERVERS": "a:1, b.example.org:2",
            "ATTUNE_KAFKA__PASSWORD": "12",
            "ATTUNE_MODEL": '"/models/a"',
            "ATTUNE_LOG_LEVEL": "DEBUG",
        },
    )
    assert not settings.engine.enforce_eager
    assert settings.trainer.kto.learning_rate == 1e-3
    assert settings.trainer.gate.prompts == Path("/tmp/prompts.jsonl")
    assert settings.event_log.readers == ("aggregator", "shipper")
    assert settings.kafka.servers == ("a:1", "b.example.org:2")
    assert settings.kafka.password.get_secret_value() == "12"
    assert settings.model_folder == Path("/models/a")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("colour = 'x'", "colour: no such setting"),
        ("[inference]\ngrpc_prt = 1", "inference.grpc_prt: no such setting"),
        ("[inference]\ngrpc_port = 65536", "inference.grpc_port: input should be less than or equal to 65535"),
        ("[trainer.kto]\nbeta = nan", "trainer.kto.beta: input should be"),
        ("[trainer.kto]\nbeta = inf", "trainer.kto.beta: input should be"),
        ("[engine]\ndtype = 's3cret'", "engine.dtype: input should be 'auto'"),
        ("inference = 's3cret'", "inference: input should be a valid dictionary"),
        ("[event_log]\nreaders = 3", "event_log.readers: "),
        ("[kafka]\nservers = ['s3cret']", "kafka.servers: each must be HOST:PORT"),
        ("[kafka]\nsasl_mechanism = 'PLAIN'\npassword = 's3cret'", "kafka: sasl_mechanism and username"),
        ("[kafka]\nca = 's3cret'", "kafka: ca, certificate and key are for tls = true"),
        ("[kafka]\ntls = true\nkey = 's3cret'", "kafka: certificate and key go together"),
        ("[kafka]\ntopic_prefix = 's3cret/'", "kafka.topic_prefix: string should match pattern"),
        ("data = 3", "data: "),
        ("data = 's3cret", "not valid TOML"),
    ],
)
def test_a_bad_file_is_named_with_the_key_and_the_reason_and_not_the_value(
    file: Path, text: str, complaint: str
) -> None:
    file.write_text(text)
    said = refused(file, {})
    assert said.startswith(f"{file}: ")
    assert complaint in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("ATTUNE_COLOUR", "x", "colour: no such setting"),
        ("ATTUNE_", "x", "no such setting"),
        ("ATTUNE_TRAINER__SEED", SECRET, "trainer.seed: input should be a valid integer"),
        ("ATTUNE_TRAINER__MLFLOW_URI__PASSWORD", SECRET, "trainer.mlflow_uri: input should be a valid string"),
        ("ATTUNE_TRAINER", SECRET, "trainer: input should be a valid dictionary"),
        ("ATTUNE_EVENT_LOG__READERS", "[s3cret", "event_log.readers: "),
    ],
)
def test_a_bad_variable_is_named_with_the_reason_and_not_the_value(name: str, value: str, complaint: str) -> None:
    said = refused(None, {name: value})
    assert said.startswith(f"environment variable {name}: ")
    assert complaint in said
    assert SECRET not in said


def test_all_that_is_wrong_is_said_at_once(file: Path) -> None:
    file.write_text("colour = 1\n[inference]\ngrpc_port = -1\n")
    assert len(refused(file, {"ATTUNE_TASTE": "x"}).splitlines()) == 3


def test_the_spool_waits_for_whoever_carries_its_records_on() -> None:
    assert load_settings(None, {}).spool_readers == ("aggregator",)
    shipped = {"ATTUNE_KAFKA__SERVERS": "a:1", "ATTUNE_EVENT_LOG__READERS": '["copy"]'}
    assert load_settings(None, shipped).spool_readers == ("shipper", "copy")


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.toml", {}) == f"{tmp_path}/none.toml: cannot be read: No such file or directory"
    (tmp_path / "latin.toml").write_bytes(b"model = '\xe9'")
    assert refused(tmp_path / "latin.toml", {}) == f"{tmp_path}/latin.toml: cannot be read: not UTF-8"


def test_the_demos_settings_are_good() -> None:
    demo = load_settings(Path(__file__).parents[1] / "deploy" / "demo.toml", {})
    assert demo.model == "demo"


def test_every_setting_says_what_it_means() -> None:
    def missing(section: type, path: str) -> list[str]:
        found = []
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            inner = f"{path}{name}"
            if hasattr(type(field.default), "model_fields"):
                found += missing(type(field.default), f"{inner}.")
            elif not field.description:
                found.append(inner)
        return found

    assert missing(Settings, "") == []


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("TLS__CERTIFICATE", "tls: certificate and key go together; set both or neither"),
        ("TLS__CLIENT_CA", "tls: client_ca needs certificate and key"),
        ("CLIENT__KEY", "client: certificate and key go together; set both or neither"),
    ],
)
def test_half_of_tls_is_refused(name: str, complaint: str) -> None:
    assert refused(None, {f"ATTUNE_{name}": "file.pem"}) == f"environment variable ATTUNE_{name}: {complaint}"


def test_every_recipe_can_be_chosen_and_no_other() -> None:
    assert get_args(RecipeName) == recipe_names()
    settings = load_settings(None, {"ATTUNE_AGGREGATOR__RECIPES": '["thumbs", "pairs"]'})
    assert settings.aggregator.recipes == ("thumbs", "pairs")
    assert "aggregator.recipes" in refused(None, {"ATTUNE_AGGREGATOR__RECIPES": '["thumb"]'})


def test_weights_of_rewards_are_kept_within_one(file: Path) -> None:
    file.write_text('[aggregator.rewards]\nimplicit = {copied = 0.1}\noutcomes = {solved = -1, "Not a name" = 0.5}\n')
    assert "outcomes" in refused(file, {})
    file.write_text("[aggregator.rewards]\noutcomes = {solved = 1.5}\n")
    assert "less than or equal to 1" in refused(file, {})
    file.write_text("[aggregator.rewards]\nimplicit = {copied = 0.1}\noutcomes = {solved = -1}\n")
    rules = BuildRules.from_settings(load_settings(file, {}).aggregator)
    assert rules.arguments["rewards"] == {"implicit.copied": 0.1, "outcome.solved": -1}


def test_a_persona_may_have_recipes_of_its_own(file: Path) -> None:
    file.write_text('[aggregator]\nrecipes = ["prompts"]\npersona_recipes = {tutor = ["thumbs", "pairs"]}\n')
    rules = BuildRules.from_settings(load_settings(file, {}).aggregator)
    assert (rules.recipes_of("concierge"), rules.recipes_of("tutor")) == (("prompts",), ("thumbs", "pairs"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = " + "[" * 100_000, "not valid TOML: nested too deep"),
        ("#" * (2 << 20), "has more than 1048576 bytes"),
        ('[tenants."../x"]', "tenants: a tenant's name has 1 to 63 lower-case letters"),
    ],
)
def test_a_file_that_means_harm_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "attune.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        load_settings(file, {})
    with pytest.raises(SettingsError):
        load_settings(None, {"ATTUNE_ENGINE": "[" * 100_000})
