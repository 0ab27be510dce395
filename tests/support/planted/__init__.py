"""Defects for the tests to find: one module for each module of webhookd.core that has some."""
