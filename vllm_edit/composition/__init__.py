"""Algebra on stored factors, without a model: imported by editing, and by serving on the request path."""
