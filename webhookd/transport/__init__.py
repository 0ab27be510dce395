"""One HTTP exchange: where it may go, its connection, its bytes, and what came back."""
