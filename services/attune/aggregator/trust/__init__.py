"""How much each row of a dataset counts: pure functions of what is in the lake."""
