"""Declares the cffi extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["aiovmm/native/build.py:ffibuilder"])
