"""A person at the console, without a browser: follows forms and links over HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape
from typing import Any

import httpx

CONSOLE = "/v1/edits/console"


class Person:
    """client: its cookies are the browser's."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self.client.get(f"{CONSOLE}{path}", params=query or None)

    async def send(
        self, page: str, path: str, fields: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Load a page, and send a form with its token to `path`."""
        token = token_of((await self.get(page)).text)
        data = {"token": token, **(fields or {})}
        return await self.client.post(f"{CONSOLE}{path}", data=data, headers=headers)

    async def sign_in(self, key: str, name: str = "ann", next: str = "") -> httpx.Response:
        return await self.send("/sign-in", "/sign-in", {"key": key, "name": name, "next": next})


def token_of(page: str) -> str:
    found = re.search(r'name="token" value="([0-9a-f]+)"', page)
    assert found is not None, page
    return found[1]


def problem_of(page: str) -> str:
    """The error that a page shows."""
    found = re.search(r'<p class="problem" role="alert"[^>]*>(.*?)</p>', page, re.DOTALL)
    assert found is not None, page
    return unescape(found[1])


def notice_of(page: str) -> str:
    found = re.search(r'<p class="notice" role="status"[^>]*>(.*?)</p>', page, re.DOTALL)
    assert found is not None, page
    return unescape(found[1])
