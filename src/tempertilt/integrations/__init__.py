"""Where other tools meet unlearned models."""
