"""Admin routes under `/v1/edits`: the verbs of the command line that need no model, for whoever holds an admin key."""
