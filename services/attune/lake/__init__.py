"""The lake: Delta tables of events, and the datasets made from them."""
