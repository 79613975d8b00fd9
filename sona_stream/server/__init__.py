"""The door for clients: a raw ASGI application (OpenAI's routes, feedback, admin, metrics) and its runner."""

from .asgi import App, create_app
from .services import Services

__all__ = ["App", "Services", "create_app"]
