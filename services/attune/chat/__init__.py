"""What inference and trainer must agree on: messages, chat template, sampling, and what a model is known by."""
