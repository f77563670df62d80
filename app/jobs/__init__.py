"""What is live: work in threads of its own, one file for each kind."""
