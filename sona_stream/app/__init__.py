"""Assembly: the one place where rooms meet. It builds the rooms from settings and owns their lifetimes."""

from __future__ import annotations

from .application import Application

__all__ = ["Application"]
