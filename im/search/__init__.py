"""Search in conversations: an index beside the store, made from its log."""
