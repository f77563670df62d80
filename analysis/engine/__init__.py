"""The engine: lanes that read one text, each under its own policy, token for token as it would be read alone."""
