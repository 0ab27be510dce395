"""What an operator does, without click and without HTTP: cli/ parses and prints."""
