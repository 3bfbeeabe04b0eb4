"""The mathematics of temper-then-tilt: torch only, no files, no transformers."""
