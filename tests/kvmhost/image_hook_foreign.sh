# Sourced by image_hook.sh where the machine cannot run the packages' programs: what is needed of what their scripts would have done.
# Not left out as they were unpacked: what does that is slow.
for unused in doc man locale info lintian; do rm -rf "$root/usr/share/$unused"; done

mkdir -p "$root/root" "$root/mnt" "$root/usr/local/bin" "$root/usr/local/sbin" "$root/usr/local/lib" "$root/var/tmp"
chmod 1777 "$root/var/tmp"
passwd=$root/usr/share/base-passwd
[ -e "$root/etc/passwd" ] || cp "$passwd/passwd.master" "$root/etc/passwd"
[ -e "$root/etc/group" ] || cp "$passwd/group.master" "$root/etc/group"

# Of update-alternatives: a program that is there under names like nc.openbsd alone.
alternative() { [ -e "$root/usr/bin/$1" ] || [ ! -e "$root/usr/bin/$2" ] || ln -s "$2" "$root/usr/bin/$1"; }
alternative awk mawk
alternative nc nc.openbsd
alternative which which.debianutils
alternative pager less
