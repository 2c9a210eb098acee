"""What every Synthward role shares: data, generators, privacy, evaluation, reporting."""

__version__ = "0.1.0"
