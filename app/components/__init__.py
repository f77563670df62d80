"""The custom component of the live page."""
