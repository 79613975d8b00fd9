"""The door for clients: a raw ASGI application (OpenAI's routes, feedback, admin, metrics) and its runner."""
