"""The upstream HTTP/1.1 client of the hot path: an asyncio protocol on httptools."""

from .client import Client
from .origin import parse_url
from .response import Response
from .timeouts import Timeouts
from .tls import create_ssl_context

__all__ = ["Client", "Response", "Timeouts", "create_ssl_context", "parse_url"]
