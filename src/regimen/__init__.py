"""regimen: train language models under data methods, and compare the methods fairly."""

__version__ = "0.1.0"
