"""Guests of every kind in one process for as long as one asks, and whatever can happen to them.

python -m tests.soak --minutes 60
"""
