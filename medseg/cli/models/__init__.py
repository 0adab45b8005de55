"""Commands about models and configurations."""
