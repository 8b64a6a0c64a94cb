"""A process of clients that each begin a long answer over a connection of their own, and read on until they are killed.

`python -m tests.inference.crowd GRPC_PORT HTTP_PORT API_KEY COUNT` prints `begun` once all have the first piece.
"""

# ruff: noqa: T201 - it talks to the test

import asyncio
import json
import sys

import grpc

from attune.v1 import chat_pb2, chat_pb2_grpc, event_pb2

TOKENS = 900


async def main(grpc_port: int, http_port: int, api_key: str, count: int) -> None:
    firsts = [asyncio.Event() for _ in range(count)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as reading:
        for number, first in enumerate(firsts):
            port, over = (http_port, over_http) if number % 2 else (grpc_port, over_grpc)
            reading.create_task(over(port, api_key, first))
        await asyncio.gather(*(first.wait() for first in firsts))
        print("begun", flush=True)


async def over_grpc(port: int, api_key: str, first: asyncio.Event) -> None:
    request = chat_pb2.ChatRequest(
        messages=[event_pb2.Message(role=event_pb2.ROLE_USER, content="hello there")],
        sampling=event_pb2.Sampling(max_tokens=TOKENS),
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        async for _ in stub.StreamChat(request, metadata=(("authorization", f"Bearer {api_key}"),)):
            first.set()


async def over_http(port: int, api_key: str, first: asyncio.Event) -> None:
    body = {
        "model": "concierge",
        "messages": [{"role": "user", "content": "hello there"}],
        "max_tokens": TOKENS,
        "stream": True,
    }
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {api_key}\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + data)
    while line := await reader.readline():
        if line.startswith(b"data: "):
            first.set()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
