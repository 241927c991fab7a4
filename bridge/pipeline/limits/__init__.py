"""What may hold an attempt back: each limit in a file of its own."""
