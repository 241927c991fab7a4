"""What is found: directories are watched and listed, and their files enter."""
