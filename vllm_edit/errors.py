"""The errors a user can cause. The CLI prints them as one line and exits 1; the server answers them as 4xx."""

from __future__ import annotations


class EditError(Exception):
    """A mistake that the user can correct. The message says what was expected, what was given, and what to do."""


class PatchError(EditError):
    """A patch file is not valid; `problems` holds one line per problem, with line number and field."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source, self.problems = source, problems
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


class UnsafeEdit(EditError):
    """Compiling was refused: an edit is too long for the model, missed its target or would harm it (health limits)."""


class Unsolvable(EditError):
    """Edits cannot be solved together with this damping: their keys are linearly dependent."""


class Unanswerable(EditError):
    """A request that nothing could answer: vLLM refuses it too, with any patch, in any mode and of the base model."""


class NotFound(EditError):
    """No such artefact, patch or tenant; `nearest` holds the closest names that exist."""

    def __init__(self, message: str, nearest: list[str] | None = None) -> None:
        self.nearest = nearest or []
        super().__init__(message + (f"; nearest: {', '.join(self.nearest)}" if self.nearest else ""))


class Corrupt(EditError):
    """A stored file does not match its digest."""


class Unsigned(EditError):
    """A compiled patch has no valid signature, and its store requires one."""


class Incompatible(EditError):
    """An artefact cannot be applied here: other base, site, rank or module than the running engine's."""


class Unavailable(EditError):
    """A dependency (database, disk space) is temporarily unavailable; not the caller's fault."""


class TooMany(EditError):
    """The caller has as much waiting as it may have; the same request succeeds later."""
