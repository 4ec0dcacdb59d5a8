"""What the commands for files share: a model on disk as deferred tensors, and files written from such, a tensor at a time."""
