"""The pure core: values and transition functions.

It reads no clock, random number, socket, thread or environment: `now` and random draws are
arguments.
"""
