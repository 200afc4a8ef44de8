"""A page to try a model on: `quark serve`."""

from quark_jax.serve.page import launch, page
from quark_jax.serve.service import Request, Result, Service

__all__ = ["Request", "Result", "Service", "launch", "page"]
