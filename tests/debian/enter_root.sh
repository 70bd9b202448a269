# Runs a command in a tree as if it were the machine's: ROOT COMMAND..., called by unshare in name spaces of its own. Below /machine it
# can read what the machine has. A pivot and not a chroot: in one, nothing may make a user name space.
set -eu
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mkdir -p "$root/machine" "$root/.outside"
mount --rbind -o ro / "$root/machine"
cd "$root"
pivot_root . .outside
umount -l /.outside
cd /root
exec "$@" </dev/null
