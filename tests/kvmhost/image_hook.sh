# Finishes the nested host's root file system and writes it to a disk image.
# $ARCH is its architecture, $CROSS what the names of its compiler start with, $SITE its directory of Python packages, and
# $PYTHON a command for a Python of its version if it cannot run its own.
# Called by mmdebstrap: ROOT STAGE DISK-GIB; nothing of ROOT outlives the call.
set -eu
umask 022
root=$1 stage=$2 gib=$3

# In a user namespace these belong to one who does not exist outside, where nobody could delete them.
trap 'rm -rf "$stage"/debs/*' EXIT

step() { echo "kvmhost: $*" >&2; }
# apt as it will be in the image: its sources, not the machine's.
in_apt() { env --chdir="$stage/debs" APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" "$@"; }

[ -z "$CROSS" ] || . "$stage/foreign.sh"

mkdir -p "$root/guest" "$root/usr/lib/modules"
for kernel in "$stage"/kernels/*; do
    release=$(cat "$kernel/release")
    installed=$root/guest/${kernel##*/}
    mkdir "$installed"
    cp "$kernel/vmlinuz" "$kernel/config" "$kernel/release" "$installed/"
    cp -r "$kernel/modules" "$root/usr/lib/modules/$release"
    ln -s "/usr/lib/modules/$release" "$installed/modules"
    depmod -b "$root" "$release"
done
# Also by its series, like 7.2 for 7.2.13.
[ ! -d "$root/guest/newest" ] || ln -s newest "$root/guest/$(cut -d. -f1,2 "$root/guest/newest/release")"

# A static fio for guests that hold little more than busybox; kept by version, for it takes longest of all.
static_fio() {
    version=$(in_apt apt-cache showsrc fio | sed -n 's/^Version: //p' | head -n 1)
    kept=$stage/tools/fio-$version-$ARCH
    if [ ! -x "$kept" ]; then
        in_apt apt-get -qq source --download-only fio &&
            mkdir "$stage/debs/fio" &&
            tar -xf "$stage"/debs/fio_*.orig.tar.?z -C "$stage/debs/fio" --strip-components=1 || return 1
        (cd "$stage/debs/fio" && ./configure --cc="${CROSS}gcc" --build-static --disable-native &&
            make -j"$(nproc)" fio && "${CROSS}strip" fio) \
            >"$stage/out/fio.log" 2>&1 || return 1
        cp "$stage/debs/fio/fio" "$kept" || return 1
    fi
    cp "$kept" "$root/guest/bin/fio" && ln -s /guest/bin/fio "$root/usr/local/bin/fio"
}

mkdir "$root/guest/bin"
cp "$root/bin/busybox" "$root/guest/bin/busybox"
step "static fio"
static_fio || step "no fio in this image: its source could not be fetched or built (fio.log)"

# Its package also wants every other driver of DPDK, and the headers: ten times as much.
step "testpmd"
in_apt apt-get -qq download dpdk-dev
dpkg-deb -x "$stage"/debs/dpdk-dev_*.deb "$stage/debs/dpdk"
install -m 755 "$stage/debs/dpdk/usr/bin/dpdk-testpmd" "$root/usr/local/bin/"

step "virtual environment"
cp -a --no-preserve=ownership "$stage/overlay/." "$root/"
mkdir -p "$root/root/aiovmm" "$root/run" "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*

# Else each start of the host would compile them: what is written there is gone with it.
step "compiled Python"
compile="-m compileall -q -j0 --invalidation-mode=unchecked-hash"
if [ -n "$PYTHON" ]; then
    $PYTHON $compile -s "$root" -p / "$root/usr/lib/python$PYTHON_VERSION" "$root$SITE"
else
    chroot "$root" python3 $compile /usr/lib/python$PYTHON_VERSION "$SITE"
fi >&2

step "boot files"
host=$(cat "$root/guest/$HOST_KERNEL/release")
install -m 644 "$root/guest/$HOST_KERNEL/vmlinuz" "$root/usr/lib/modules/$host/modules.dep" "$stage/out/"
install -m 755 "$root/bin/busybox" "$stage/out/boot/"
for module in $BOOT_MODULES; do
    for path in $(sed -n "s|^\([^:]*/$module\.ko[^:]*\): *\(.*\)|\1 \2|p" "$root/usr/lib/modules/$host/modules.dep"); do
        install -m 644 "$root/usr/lib/modules/$host/$path" "$stage/out/boot/"
    done
done

step "disk image"
# proc, sys and dev are mounted in the tree: a plain bind shows it without them.
mkdir "$stage/debs/plain"
unshare --mount sh -c '
    mount --bind "$1" "$2/debs/plain" &&
    mke2fs -q -t ext4 -O ^has_journal -m 0 -E lazy_itable_init=1,nodiscard -d "$2/debs/plain" "$2/out/disk.img" "$3G"
' sh "$root" "$stage" "$gib" >&2
