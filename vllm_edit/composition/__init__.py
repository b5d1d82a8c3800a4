"""Algebra on stored factors, without a model. Editing imports it, and so does serving on the request path."""
