"""One worker process: claims, sends and records, in a few threads."""
