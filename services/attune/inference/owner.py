"""Engine processes end with the process that started them, however that ends.

vLLM loads `end_with_owner` as a general plugin in each of its processes. A process that attune did not start is left
alone.
"""

import os

from attune.runtime import die_with_parent

_OWNER = "_ATTUNE_ENGINE_OWNER"


def mark_owner() -> None:
    """Called in the process that is about to start an engine; what it starts inherits the mark."""
    os.environ[_OWNER] = str(os.getpid())


def end_with_owner() -> None:
    """In a process below a marked one: asks to be killed when its parent ends."""
    if os.environ.get(_OWNER, str(os.getpid())) != str(os.getpid()):
        die_with_parent()
