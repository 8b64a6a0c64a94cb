"""The Python SDK.

from attune.client import Client

    with Client("127.0.0.1:50051", api_key="ak-...") as client:
        answer = client.chat("What is the capital of France?", persona="concierge")
        print(answer.text)
        answer.up()
"""

from attune.client.chat import AsyncClient, AsyncStream, Client, SamplingFields, Stream
from attune.client.receipts import AsyncReceipts, Receipt, Receipts
from attune.client.response import AsyncResponse, Response, ToolCall, Usage
from attune.client.retry import Retry
from attune.client.tls import Tls

__all__ = [
    "AsyncClient",
    "AsyncReceipts",
    "AsyncResponse",
    "AsyncStream",
    "Client",
    "Receipt",
    "Receipts",
    "Response",
    "Retry",
    "SamplingFields",
    "Stream",
    "Tls",
    "ToolCall",
    "Usage",
]
