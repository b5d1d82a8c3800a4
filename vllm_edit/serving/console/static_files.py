"""The console's styles, scripts and picture: files of this package, read once, by their names only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Response

from vllm_edit.digest import digest_bytes
from vllm_edit.errors import NotFound
from vllm_edit.names import shown
from vllm_edit.serving.admin.authorization import STATIC

FOLDER = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class StaticFile:
    """version: a digest of the content, which is in the file's address, so that a browser may keep it."""

    content: bytes
    media_type: str
    version: str


def read_static_files() -> Mapping[str, StaticFile]:
    """File name → file."""
    files = {path.name: path for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    contents = {name: path.read_bytes() for name, path in files.items()}
    return {
        name: StaticFile(content, TYPES[files[name].suffix], digest_bytes(content)[:12])
        for name, content in contents.items()
    }


def routes(files: Mapping[str, StaticFile]) -> APIRouter:
    router = APIRouter()

    @router.get(f"{STATIC}/{{name}}")
    async def file(name: str) -> Response:
        """A style sheet, a script or a picture."""
        if (found := files.get(name)) is None:
            raise NotFound(f"there is no file {shown(name)}")
        headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
        return Response(found.content, media_type=found.media_type, headers=headers)

    return router
