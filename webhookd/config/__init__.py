"""The configuration: every option, where its value came from, and the kinds of values."""
