"""A hostile driver: what a guest may do to each device's registers and rings, and that nobody but itself has anything of it.

`targets` are the devices with one good request each, `rig` the machines (without KVM, and with a true vCPU whose guest does what
it is told), each other module one category of cases. A case has a verdict from the specification; whatever it was, the device
then serves a driver that comes anew, another device of the machine a read, and another machine of the process its guest.
"""
