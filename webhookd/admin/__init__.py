"""What an operator does: values in, values out. No click and no HTTP here; `cli` parses and prints."""
