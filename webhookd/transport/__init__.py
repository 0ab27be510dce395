"""One HTTP exchange: its target, its connection, the request and the answer."""
