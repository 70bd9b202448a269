"""Root file systems for guests: from directories, tar archives and OCI images, each made once into an image that guests share."""

from aiovmm.rootfs.image import BuiltImage, Image, ImageConfig
from aiovmm.rootfs.limits import Limits

__all__ = ["BuiltImage", "Image", "ImageConfig", "Limits"]
