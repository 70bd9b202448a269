"""Root file systems from directories, archives and OCI images."""
