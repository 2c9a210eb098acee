"""The coordinator: strategy, checkpoints."""
