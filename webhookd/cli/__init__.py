"""The command line: one module a group of commands. Nothing heavy is imported before a command
needs it.
"""
