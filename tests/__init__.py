"""Before anything imports gRPC or torch."""

import os

# Its own care for forks ends a fifth of the processes that are forked beside a busy server before they can exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# The models of tests are so small that threads only wait for one another, and take others' cores meanwhile.
os.environ.setdefault("OMP_NUM_THREADS", "1")
