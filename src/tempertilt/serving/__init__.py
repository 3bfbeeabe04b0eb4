"""An OpenAI-compatible server for unlearned models: on vLLM where it is installed, else on transformers."""
