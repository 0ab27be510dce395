"""Finds the packages, which setup.cfg cannot do while webhookd.sql lives in ./sql; the rest is
there.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["webhookd", "webhookd.*"]), "webhookd.sql"])
