"""`python -m bench` measures the bridge against its budgets, and prints one Markdown table."""
