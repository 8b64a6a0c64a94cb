"""The demo model: its templates, the script that trains it, what ships of it, and its held-out items."""
