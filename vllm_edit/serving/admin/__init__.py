"""Admin routes under `/v1/edits`: the commands that need no model, for callers with an admin key."""
