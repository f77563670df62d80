"""The state of a job as bytes, for the components that draw it."""
