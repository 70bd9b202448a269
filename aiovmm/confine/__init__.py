"""What a process that runs one guest gives up of its own rights, so that a guest which takes it over has little of it.

For a process that is ours alone: the command, a pool's workers. Never an embedder's, whose other code would be confined, too; it
can call these itself. `calls` and `filter` (seccomp(2)) and `paths` (landlock(7)) hold the policy, pure; `seccomp` and `landlock`
carry it out.
"""
