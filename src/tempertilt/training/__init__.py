"""LoRA and full training: the frozen lower layers replayed, the answers of a batch, one loop."""
