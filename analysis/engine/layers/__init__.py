"""What one layer of a lane holds of keys and values, in tensors; which tokens stay is decided by kv/."""
