"""The custom components: each a folder of script and style, and the function that mounts it."""
