"""Before anything imports gRPC."""

import os

# Its own care for forks ends a fifth of the processes that are forked beside a busy server before they can exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
