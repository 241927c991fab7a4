"""What is kept in the store and not handed over yet: looked up, each version once, oldest first."""
