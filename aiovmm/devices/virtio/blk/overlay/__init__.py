"""Copy-on-write overlays: many disks over one base that nobody writes to.

header.py   the file's header, pure
file.py     where it is written
layer.py    the map, shared with native code (native/src/blk_layers.c), and its way to the medium
base.py     what is below, counted
image.py    an overlay as a disk
"""
