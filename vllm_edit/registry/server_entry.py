"""A running server, as its last heartbeat reports it."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_edit.registry.revision import Revision

LIVE_S = 5.0
"""A server without a heartbeat for longer has died, or cannot reach the registry."""
SWEPT_S = 24 * 3600.0
"""A server without a heartbeat for longer is no longer shown."""


@dataclass(frozen=True)
class ServerEntry:
    """A server's last heartbeat.

    Attributes:
        generation: Generation of the registry state that the server decides requests from.
        drained: Generation up to which adapters of removed patches have left its engine and its disk.
        seen_ago_s: Age of the heartbeat in seconds.
        token: Token of that state; None for a server of an earlier version.
    """

    id: str
    host: str
    pid: int
    generation: int
    drained: int
    seen_ago_s: float
    token: str | None = None

    @property
    def revision(self) -> Revision:
        """The state that the server decides requests from."""
        return Revision(self.generation, self.token)

    @property
    def name(self) -> str:
        """Name for display."""
        return f"{self.host}:{self.pid}"

    @property
    def live(self) -> bool:
        # After the clock is set back, old heartbeats have times in the future.
        return abs(self.seen_ago_s) <= LIVE_S

    @property
    def silent(self) -> bool:
        """True if it sends no heartbeats but did not leave: it died, or still serves without the registry."""
        return not self.live and self.seen_ago_s <= SWEPT_S
