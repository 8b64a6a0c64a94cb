import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from attune.cli.config import effective, example
from attune.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "vllm", "transformers", "trl", "peft", "grpc", "duckdb", "deltalake", "pyarrow", "mlflow", "numpy")


def attune(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "attune.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def test_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            [sys.executable, "-P", "-m", "attune.cli.main", "key", "create", "--data", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (said.returncode, said.stderr) == (1, "attune: no space left on device\n")


@pytest.mark.parametrize(
    "arguments",
    [(), ("up",), ("chat",), ("train",), ("rehearse",), ("policy",), ("policy", "list"), ("config",), ("demo-model",)],
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from attune.cli.main import app\n"
        f"try: app([*{arguments!r}, '--help'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('imported:', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.splitlines()[-1].strip() == "imported:"


def test_switches_are_shown_without_a_type(tmp_path: Path) -> None:
    for arguments in (("--help",), ("up", "--help"), ("policy", "export", "--help")):
        said = attune(*arguments, folder=tmp_path).stdout
        assert "--help" in said
        assert "bool" not in said


def test_the_example_file_is_what_the_settings_say() -> None:
    committed = (ROOT / "deploy" / "attune.toml").read_text()
    assert committed == example(Settings), "run `attune config example > deploy/attune.toml`"


def test_the_example_as_it_is_and_with_every_default_taken_out_of_its_comment_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "attune.toml"
    lines = example(Settings).splitlines()
    for text in (
        lines,
        [line.removeprefix("#") if line.startswith("#") and line[1] != " " else line for line in lines],
    ):
        file.write_text("\n".join(line for line in text if not line.endswith(" =")))
        assert load_settings(file, {}) == load_settings(None, {})


def test_the_settings_in_force_can_be_read_back(tmp_path: Path) -> None:
    settings = load_settings(
        None, {"ATTUNE_DATA": str(tmp_path), "ATTUNE_TRAINER__MLFLOW_URI": "https://mlflow.example"}
    )
    file = tmp_path / "attune.toml"
    file.write_text(effective(settings))
    assert load_settings(file, {}) == settings


def test_the_settings_in_force_show_no_password() -> None:
    settings = load_settings(None, {"ATTUNE_TRAINER__MLFLOW_URI": "https://ann:geheim@mlflow.example/x"})
    assert 'mlflow_uri = "https://ann:***@mlflow.example/x"' in effective(settings)


def test_config_show_prints_toml_with_the_file_and_the_environment(tmp_path: Path) -> None:
    (tmp_path / "attune.toml").write_text('default_persona = "tutor"\n')
    shown = attune("config", "show", folder=tmp_path, ATTUNE_INFERENCE__GRPC_PORT="50061")
    values = tomllib.loads(shown.stdout)
    assert (values["default_persona"], values["inference"]["grpc_port"]) == ("tutor", 50061)


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        (("up", "--config", "none.toml"), {}, "none.toml: cannot be read: No such file or directory"),
        (
            ("up",),
            {"ATTUNE_INFERENCE__GRPC_PRT": "1"},
            "ATTUNE_INFERENCE__GRPC_PRT: inference.grpc_prt: no such setting",
        ),
        (("config", "show"), {"ATTUNE_TRAINER__SEED": "secret"}, "trainer.seed: input should be a valid integer"),
        (("chat",), {}, "inference is not running on"),
        (("chat", "--server", "127.0.0.1:1"), {}, "cannot reach 127.0.0.1:1"),
        (("policy", "list", "--server", "127.0.0.1:1"), {}, "127.0.0.1:1"),
        (("train",), {}, "attune train --once"),
        (("up", "--data", "/proc/nowhere"), {}, "/proc/nowhere"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_exit_status_1(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], complaint: str
) -> None:
    said = subprocess.run(
        [sys.executable, "-P", "-m", "attune.cli.main", *arguments],
        input="hello\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )
    assert said.returncode == 1
    assert said.stderr.startswith("attune: ")
    assert complaint in said.stderr
    assert "secret" not in said.stderr
    assert "Traceback" not in said.stderr


def test_prometheus_scrapes_every_service_at_its_default_port() -> None:
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    scraped = {each["labels"]["service"]: each["targets"] for job in jobs for each in job["static_configs"]}
    settings = Settings()
    assert scraped == {
        name: [f"{getattr(settings, name).host}:{getattr(settings, name).metrics_port}"]
        for name in ("inference", "aggregator", "trainer", "rollout")
    }
