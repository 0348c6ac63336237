"""Inference on the model in memory: one engine, one dispatcher, batches over a shared prefix."""
