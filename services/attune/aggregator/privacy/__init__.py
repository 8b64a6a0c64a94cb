"""Personal data: masked before the lake, and erased when a person asks for it."""
