"""The page in docs/ votes from a real browser with the feedback token alone."""

import asyncio
import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from attune.chat.template import ChatTemplate
from attune.inference.engine import Engine
from attune.v1 import event_pb2
from tests.inference.house import House, ask

DOCS = Path(__file__).parents[3] / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def pages() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=DOCS)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def vote(page_url: str, server_url: str, token: str, comment: str) -> str:
    """What the page says after a click on `no`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.goto(f"{page_url}/vote.html#{server_url}|{token}")
            page.fill("#comment", comment)
            page.click("#down")
            page.wait_for_function("!['', '…'].includes(document.getElementById('said').textContent)")
            return page.text_content("#said") or ""
        finally:
            browser.close()


@pytest.mark.skipif(CHROMIUM is None and os.environ.get("CI") != "true", reason="needs a browser: apt install chromium")
async def test_a_page_votes_with_the_token_alone_and_not_with_another(
    tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path
) -> None:
    with pages() as page_url:
        async with House.open(tmp_path, engine, template, demo_model, cors_origins=(page_url,)) as house:
            answer = await house.stub.Chat(ask(max_tokens=4), timeout=60)
            token = answer.responses[0].feedback_token
            server_url = f"http://127.0.0.1:{house.http_port}"
            changed = token[:20] + ("A" if token[20] != "A" else "B") + token[21:]
            said = await asyncio.to_thread(vote, page_url, server_url, changed, "")
            assert said.startswith("Not taken: the feedback token is not one that this server signed")
            assert not house.thumbs()
            assert await asyncio.to_thread(vote, page_url, server_url, token, "naïve ☕") == "Thank you."
            (event,) = house.thumbs()
            assert (event.thumb, event.comment) == (event_pb2.THUMB_DOWN, "naïve ☕")
