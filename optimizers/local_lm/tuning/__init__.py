"""What is trained and served beside the base: ways of tuning, and adapters made by them."""
