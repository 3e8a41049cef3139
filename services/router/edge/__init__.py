"""The inference edge: HTTP in raw ASGI, assignment, workers, answers."""
