"""Commands that predict and evaluate."""
