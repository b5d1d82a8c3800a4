"""Sessions of the console: signed cookies that name the admin key with which a person signed in.

The cookie has the key's id and never its secret. The signing secret is the operator's, the same on all servers, or
random for each process. It is not derived from the registry: a reader of the database, or of a copy of it, could then
sign a session. A session cannot be revoked alone; revoking its key ends it (`caller.identify_session`).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import asdict, dataclass
from typing import Any

from itsdangerous import BadData, URLSafeTimedSerializer
from pydantic import TypeAdapter, ValidationError

LIFE_S = 8 * 3600
"""Seconds after which a person signs in again."""
NOTICE_S = 60
"""Seconds for which a notice waits for the next page."""
_NOTICE_LENGTH = 1000  # characters: a browser drops a cookie of over 4 KiB


@dataclass(frozen=True)
class Session:
    """A signed-in person.

    api_key_id: id of the admin key. name: the name that the person gave, for the audit. nonce: random; the token of the
    session's forms depends on it.
    """

    api_key_id: str
    name: str
    nonce: str


_SESSION = TypeAdapter(Session)


class Sessions:
    """Makes and reads the console's cookies. secret: signs them; None makes a random secret."""

    def __init__(self, secret: str | None = None) -> None:
        self._secret = (secret or secrets.token_hex(32)).encode()
        self._sessions = self._serializer("session")
        self._notices = self._serializer("notice")

    def begin(self, api_key_id: str, name: str) -> str:
        """A new session's cookie."""
        return self._sessions.dumps(asdict(Session(api_key_id, name, new_nonce())))

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None if it is missing, forged or older than `LIFE_S`."""
        data = _loaded(self._sessions, cookie, LIFE_S)
        try:
            return None if data is None else _SESSION.validate_python(data)
        except ValidationError:  # of another version of this program
            return None

    def token(self, nonce: str) -> str:
        """The token of all forms that are shown to the browser with this nonce."""
        return hmac.new(self._secret, b"form\0" + nonce.encode(errors="replace"), hashlib.sha256).hexdigest()

    def matches(self, nonce: str, token: str) -> bool:
        """True if a form's token is that of the browser's nonce."""
        return bool(nonce) and hmac.compare_digest(self.token(nonce).encode(), token.encode(errors="replace"))

    def note(self, text: str) -> str:
        """A cookie with a notice for the next page. It is signed, so that nobody else can put a text there."""
        return self._notices.dumps(text[:_NOTICE_LENGTH])

    def notice(self, cookie: str | None) -> str | None:
        data = _loaded(self._notices, cookie, NOTICE_S)
        return data if isinstance(data, str) else None

    def _serializer(self, purpose: str) -> URLSafeTimedSerializer:
        how = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        return URLSafeTimedSerializer(self._secret, salt=f"vllm-edit console {purpose}", signer_kwargs=how)


def new_nonce() -> str:
    return secrets.token_urlsafe(16)


def _loaded(serializer: URLSafeTimedSerializer, cookie: str | None, life_s: int) -> Any:
    try:
        return None if cookie is None else serializer.loads(cookie, max_age=life_s)
    except (BadData, RecursionError):
        return None
