"""From records and a base model to an adapter."""
