# Builds iommufd, and VFIO as it is with it, in ROOT: Debian's source of a kernel and its headers, unpacked. The modules go to OUT.
set -eu
root=$1 out=$2
source=$(echo "$root"/usr/src/linux-source-*.tar.xz)
headers=$(echo "$root"/usr/src/linux-headers-*-cloud-amd64)
common=$(echo "$root"/usr/src/linux-headers-*-common)
name=${source##*/} name=${name%.tar.xz}

mkdir "$root/build"
tar -xJf "$source" -C "$root" "$name/drivers/iommu" "$name/drivers/vfio" "$name/lib/interval_tree.c"
cp -r "$root/$name/drivers/iommu/iommufd" "$root/$name/drivers/vfio" "$root/$name/drivers/iommu/iommu-priv.h" "$root/build/"
echo "include $common/Makefile" >"$headers/Makefile" # which knows where it would be installed
rm -f "$headers/vmlinux"                             # it is there for types of BPF's, which nobody asks for

# Half of the interval tree is built for iommufd alone: here it is a part of it.
tree=$root/$name/lib/interval_tree.c
{
    grep '^#include' "$tree"
    sed -n '/^#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER/,$p' "$tree" | grep -v EXPORT_SYMBOL
} >"$root/build/iommufd/span.c"
sed -i 's/^\(iommufd-y := .*\)/\1\n\tspan.o \\/' "$root/build/iommufd/Makefile"
echo 'obj-m := iommufd/ vfio/' >"$root/build/Kbuild"

make -s -j"$(nproc)" -C "$headers" M="$root/build" CONFIG_IOMMUFD=m CONFIG_VFIO_DEVICE_CDEV=y \
    KCFLAGS="-DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_VFIO_DEVICE_CDEV=1 -DCONFIG_INTERVAL_TREE_SPAN_ITER=1" modules
find "$root/build" -name '*.ko' -exec strip -g {} + -exec cp -t "$out" {} +
