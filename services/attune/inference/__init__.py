"""The inference service: chat and feedback over gRPC, generation by vLLM in process."""
