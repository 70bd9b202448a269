"""PCI: configuration space, BARs, MSI-X, segments with their host bridges, and the virtio transport over them.

    root            all segments of a machine and the configuration ports
    plan            where segments lie in the address space: plain data, also for the firmware's tables
    segment         32 slots, their ECAM pages, and where BARs answer (`aperture` decides that)
    function        what a segment expects of a function: the seam for devices that are not virtio
    config_space, bar, capabilities, msix    the registers, pure: bytes in, effects out
    msix_lines      MSI-X vectors as interrupt lines
    virtio          the transport: `common_config` (registers), `doorbells` (kicks), `virtio_irq` (notifications),
                    `virtio_bar` (layout), `config_window` (PCI_CFG)
    services        what all of it needs from the machine
    driver, virtio_driver    the guest's side, for tests

A read of configuration space, of the common structure or of the MSI-X table never waits for the event loop: the bytes that
the state is kept in are those that the run loop answers from (bus.FastPage).
"""
