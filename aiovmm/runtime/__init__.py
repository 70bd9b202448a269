"""Mechanisms of a program that lives in a process, its threads and an event loop. They know nothing of guests.

dataclass, lazy           definitions and imports that cost a start nothing
home, tasks, worker       the loop that an object belongs to, tasks that end together, a thread for calls that take long
patience, timeouts        how long to look before sleeping; time-outs that say what was waited for
watchdog                  who blocks the loop
log, traces, quota        what is told, what is kept of an error, and how often
descriptors, forks        a share of the process's descriptors for each guest; what a forked child must not keep
stdio, output_file, ofdlock, user_dirs    standard streams, files for a person, locks, where a user's files go
unix_listener             sockets that are there when they can be connected to
"""
