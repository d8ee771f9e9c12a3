"""The version of this package; records name it, and the build reads it from here."""

__version__ = "0.1.0"
