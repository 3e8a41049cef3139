"""The demo's models: their text, tokenizer, training script, digests and weights."""
