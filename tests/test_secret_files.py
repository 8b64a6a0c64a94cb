import subprocess
import sys
from pathlib import Path

from attune import secret_files

# A file may grow to 100 bytes and no further: as on a disk that is almost full, a write stops in the middle.
PROGRAM = """
import resource, sys
from pathlib import Path
from attune import secret_files
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    secret_files.replace(Path(sys.argv[1]), b"b" * 1000)
except OSError as error:
    print(error.filename)
"""


def test_a_file_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret_files.replace(file, b"a" * 1000)
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file)], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.strip() == str(file)
    assert file.read_bytes() == b"a" * 1000
    assert [each.name for each in tmp_path.iterdir()] == ["keys.json"], "no draft is left"
