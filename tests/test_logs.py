import json
import subprocess
import sys

PROGRAM = """
import logging
from attune.errors import NotFound
from attune.logs import configure_logging, log_failure
configure_logging("test")
logger = logging.getLogger("some.library")
try:
    try:
        raise ValueError("what the person wrote")
    except ValueError as error:
        raise RuntimeError("and what the model said") from error
except RuntimeError as error:
    logger.exception("failed")
    log_failure(logger, "a.Service/Call", error)
try:
    open("/nowhere/at/all")
except OSError:
    logger.exception("no such file")
try:
    raise NotFound("no such policy")
except NotFound:
    logger.exception("not found")
"""


def test_exceptions_are_logged_with_their_place_and_kind_and_without_their_words() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    library, failure, missing, ours = (json.loads(line) for line in said.stderr.splitlines())
    for text in (library["exc_info"], failure["trace"]):
        assert "wrote" not in text
        assert "model said" not in text
        assert text.index("ValueError") < text.index("RuntimeError")
        assert 'File "<string>", line' in text
    assert "No such file or directory: '/nowhere/at/all'" in missing["exc_info"]
    assert "NotFound: no such policy" in ours["exc_info"]
