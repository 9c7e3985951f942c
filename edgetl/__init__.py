"""edgetl: image folder in, proven engine out."""

__version__ = "0.1.0"
