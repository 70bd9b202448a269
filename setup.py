"""Declares the cffi extension and the agent's program; everything else is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent


class BuildNative(build_ext):
    """Also builds the program for guests, which is data of the package."""

    def run(self) -> None:
        super().run()
        root = HERE if self.inplace else Path(self.build_lib)
        runpy.run_path(str(HERE / "aiovmm/agent/build.py"))["build_agents"](root / "aiovmm/agent/bin")


setup(cffi_modules=["aiovmm/native/build.py:ffibuilder"], cmdclass={"build_ext": BuildNative})
