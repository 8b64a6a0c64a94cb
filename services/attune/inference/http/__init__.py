"""The OpenAI-compatible HTTP server: JSON to the messages of protos/ and back, and nothing of its own."""
