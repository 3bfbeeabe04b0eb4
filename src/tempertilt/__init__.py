"""Temper-Then-Tilt unlearning of generative language models (Block et al., ICML 2026, arXiv 2602.10217)."""

__version__ = "0.1.0"
