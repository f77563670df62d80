"""Forward passes: what each layer attends to, over each kind of store."""
