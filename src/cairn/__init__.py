"""Cairn: super tiny language models, stacked so that they answer together, and measured honestly."""

__version__ = "0.1.0"
__all__ = ["__version__"]
