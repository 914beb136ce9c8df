"""The core: what a circle is, who finds it, where it is kept. No HTTP, no Ray, no Kubernetes."""

from importlib.metadata import version

__version__ = version("circle-detection-service")
