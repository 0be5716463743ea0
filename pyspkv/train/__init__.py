"""The only training loop, and its log."""
