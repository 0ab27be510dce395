"""The parent process: forks workers, watches and replaces them. No thread, no database."""
