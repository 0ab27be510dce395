"""The pure core: values and transition functions.

No clock, dice, socket, thread or environment; `now` and draws are arguments.
"""
