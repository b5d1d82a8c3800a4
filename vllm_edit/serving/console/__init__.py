"""The console: pages under `/v1/edits/console` for administrators, rendered on the server."""
