"""Finds the packages. `find:` in setup.cfg cannot: it does not look for webhookd.sql in ./sql. All
other metadata is in setup.cfg.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["webhookd", "webhookd.*"]), "webhookd.sql"])
