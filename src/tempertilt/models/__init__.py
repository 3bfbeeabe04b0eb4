"""Base models, and the unlearned model as a transformers model: loading, wrapping, adapters, decoding, scoring."""
