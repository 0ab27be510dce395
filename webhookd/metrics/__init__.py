"""What a worker counts, how it is shown, and how several workers' metrics are merged."""
