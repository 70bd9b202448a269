"""Options without keys, and those that are refused with all of theirs; see machine_keys."""

from __future__ import annotations

__all__ = ["TABLE"]

TABLE = """
--kernel | differs | bzImage, ELF or PVH; on arm64 Image, Image.gz and its like, EFI zboot
--initramfs | same | an empty file is none, of which it is remarked
--cmdline | differs | unset: one that talks on the consoles that there are, with panic=-1 (empty there)
-v | same |
-V | same |
--version | same |
--name | ours | the guest's name in events and logs
--on-reboot | ours | `exit`, or `restart` as the reference
--on-panic | ours | `exit`, or `restart` as the reference
--detach-keys | ours | keys that detach the terminal
--stop-timeout | ours | SIGTERM presses the power button, and kills after this time; the reference ends at once
--json | ours | events
--control-socket | ours | a unix socket for `aiovmm snapshot`, `add`, `remove`, `resize`
--rootfs | ours | runs a command in a guest with that root, see docs/sandboxes.md; so do all below that are ours
--scratch | ours | space for what it writes
--volume | ours | a directory of the host, by virtiofs
--publish | ours | a port of the host's loopback
--network | ours | a network by passt
--allow | ours | that network, filtered: the networks and names that it may reach
--namespaces | ours | mount and user namespaces of the process's own, see docs/security.md
-e | ours | --env
--env | ours | a variable of the command's environment
-u | ours | --user
--user | ours | whom it runs as; without --rootfs, the same as --host-user
--host-user | ours | the user of the host that root becomes, see docs/security.md
-w | ours | --cwd
--cwd | ours | where it runs
-t | ours | --tty
--tty | ours | it gets the terminal
--filter | ours | that terminal is shown what draws alone, see docs/security.md
--api-socket | refused | there is no HTTP API: a Python program is the API, see docs/embedding.md
--dbus-object-path | refused | there is no D-Bus API
--dbus-service-name | refused | there is no D-Bus API
--dbus-system-bus | refused | there is no D-Bus API
--event-monitor | differs | the same objects, and with the source `aiovmm` what has no name there; path= or fd=, not both
--firmware | refused | there is no firmware: give a kernel
--fw-cfg-config | refused | fw_cfg is not there
--gdb | refused | there is no debugger's stub
--host-data | refused | confidential guests are not there
--igvm | refused | confidential guests are not there
--ivshmem | refused | ivshmem is not there
--landlock | same |
--landlock-rules path access | differs | refused without --landlock or --namespaces, where it has no effect there
--log-file | same |
--log-format | differs | unset, standard error has a form of its own; {location} is a Python file
--no-shutdown | differs | there is no API to boot another guest by: a signal ends it
--pvmemcontrol | refused | pvmemcontrol is not there
--restore | differs | snapshots of our own format, read as it is touched but with memory_restore_mode=copy; resume=on; within=DIR
--seccomp | differs | `true` as `errno`: a refused call fails and the guest runs on; set when devices are there, before it runs
--sgx-epc | refused | SGX is not there, nor in the reference any more
--tpm | refused | there is no TPM
--user-device | refused | vfio-user is not there
--vdpa | refused | vDPA is not there
"""
