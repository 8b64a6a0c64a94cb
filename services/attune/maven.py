"""Jars, brought by Maven once and kept in the user's cache."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from attune.errors import FailedPrecondition

_JAVA = 17
_FETCH_SECONDS = 600.0
_POM = """<project>
  <modelVersion>4.0.0</modelVersion><groupId>attune</groupId><artifactId>jars</artifactId><version>1</version>
  <dependencies>{}</dependencies>
</project>
"""


def fetch_jars(name: str, artifacts: Sequence[str], what_for: str, otherwise: str) -> Path:
    """The folder, by that name, of these artifacts (`group:artifact:version`) and all that they need.

    Raises FailedPrecondition, with what to install or what to do instead, when Java or Maven is missing or Maven cannot
    bring them.
    """
    _check_java(what_for, otherwise)
    jars = cached_jars(name)
    if jars.is_dir():
        return jars
    if shutil.which("mvn") is None:
        raise FailedPrecondition(
            f"{what_for} wants Maven once, to bring jars: install the package maven, or {otherwise}"
        )
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent) as draft:
        (Path(draft) / "pom.xml").write_text(_POM.format("".join(map(_dependency, artifacts))))
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={draft}/jars"]
        try:
            told = subprocess.run(
                command, cwd=draft, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise FailedPrecondition(f"Maven did not bring the jars for {name} in {_FETCH_SECONDS:g} s") from None
        if told.returncode:
            said = (told.stdout + told.stderr).strip().splitlines()[:1]
            raise FailedPrecondition(f"Maven cannot bring the jars for {name}: {' '.join(said) or told.returncode}")
        with contextlib.suppress(OSError):  # another process was first
            (Path(draft) / "jars").rename(jars)
    return jars


def cached_jars(name: str) -> Path:
    """Where the folder of that name is, or will be."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attune" / name


def _dependency(artifact: str) -> str:
    group, name, version = artifact.split(":")
    named = f"<groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version>"
    return f"<dependency>{named}</dependency>"


def _check_java(what_for: str, otherwise: str) -> None:
    if shutil.which("java") is None:
        raise FailedPrecondition(
            f"{what_for} wants Java {_JAVA}: install the package openjdk-{_JAVA}-jre-headless, or {otherwise}"
        )
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < _JAVA:
        raise FailedPrecondition(f"{what_for} wants Java {_JAVA}; there is {' '.join(said.splitlines()[:1])}")
