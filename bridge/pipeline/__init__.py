"""The way of an event: runner → intake → router → lane, with its limits and retries."""
