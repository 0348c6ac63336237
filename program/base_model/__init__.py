"""How `evergreen-base` is made: rows from generated contracts, a tokenizer, the training run, and what it can do."""
