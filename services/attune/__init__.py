"""attune: a chat model that learns from what its users say about it."""
