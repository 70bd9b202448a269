"""Coverage-guided fuzzing of what reads a guest's memory, a peer's bytes or a user's file.

`native/` has targets in C, linked with the native sources, libFuzzer and the address and undefined-behaviour sanitizers;
`targets/` has those in Python, driven by Atheris. `corpus/` has what earlier runs found worth keeping.
`make fuzz MINUTES=60` runs all.
"""
