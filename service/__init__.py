"""Darkroom: an SDXL microservice."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("darkroom-service")
except PackageNotFoundError:  # a Bento carries the source, not the distribution
    __version__ = "0.1.0"
