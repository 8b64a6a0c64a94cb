"""attune: a chat model that learns from what its users say about it."""

import os

# Read when gRPC is imported, hence here, before anything can. Its newer way of listening hands every message to one
# more thread: a third more of the transport's CPU time for each, and a tenth of a millisecond until the first.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
