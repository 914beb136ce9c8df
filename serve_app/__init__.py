"""The application put together: ``serve run serve_app:app``, or ``serve_app:build_app`` with arguments."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.serve import Application

    from serve_app.builder import build_app

    app: Application

__all__ = ["app", "build_app"]


def __getattr__(name: str) -> object:
    """Made on demand (PEP 562), so that the commands of ``python -m serve_app`` do not wait for Ray's import."""
    if name == "build_app":
        from serve_app.builder import build_app

        return build_app
    if name == "app":
        from circles.settings import Settings
        from serve_app.builder import build_app

        return build_app(Settings())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
