#!/bin/sh
# The first process of a sandbox: puts its root together, of an image that others read too and of what this guest writes, and leaves
# the rest to the agent. What the host says, on the kernel's command line:
#   sandbox.modules=A,B           load these
#   sandbox.image=TYPE            the file system of the first disk
#   sandbox.scratch=TYPE          that of the second, which takes what is written; without it memory does
#   sandbox.volume=TAG:MODE:PATH  a directory of the host by virtiofs, ro or rw; as often as there are any
#   sandbox.address=CIDR sandbox.gateway=ADDRESS   of the network card, once for each of IPv4 and IPv6
#   sandbox.dns=ADDRESS           who resolves names
#   sandbox.hostname=NAME
export PATH=/bin:/sbin
mount -t devtmpfs -o mode=0755 dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
addresses= gateways= dns= volumes= scratch= modules= name=sandbox
for word in $(cat /proc/cmdline); do
  value=${word#*=}
  case $word in
    sandbox.modules=*) modules=$(echo "$value" | tr , ' ') ;;
    sandbox.image=*) image=$value ;;
    sandbox.scratch=*) scratch=$value ;;
    sandbox.volume=*) volumes="$volumes $value" ;;
    sandbox.address=*) addresses="$addresses $value" ;;
    sandbox.gateway=*) gateways="$gateways $value" ;;
    sandbox.dns=*) dns="$dns $value" ;;
    sandbox.hostname=*) name=$value ;;
  esac
done

fail() { # the host hears of it by the guest's end, and shows this
  echo "aiovmm: $*"
  poweroff -f
}
there() { # a disk, at once as a rule: its driver has looked for it when it is loaded
  tries=0
  until [ -b "$1" ]; do
    [ $tries -lt 100 ] || fail "there is no $1: its driver has not found it"
    tries=$((tries + 1))
    sleep 0.05
  done
}
names() { # in $1: who is localhost, and $2, this guest. Builders leave that to whoever runs the image. No process is begun for it
  missing="localhost $2" whole=y
  [ ! -L "$1" ] || return 0 # it leads to somewhere else than it would in the image
  [ -e "$1" ] || : >"$1"
  [ -f "$1" ] || return 0
  set -f
  while read -r address words || { [ -n "$address" ] && whole=; }; do
    for word in $words; do
      case $address$word in *'#'*) break ;; esac
      [ "$word" != localhost ] || missing=${missing#localhost}
      [ "$word" != "$2" ] || missing=${missing% "$2"}
    done
  done <"$1"
  set +f
  {
    [ -n "$whole" ] || echo
    case $missing in localhost*) printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' ;; esac
    case $missing in *" $2") printf '127.0.1.1\t%s\n' "$2" ;; esac
  } >>"$1"
}

modprobe -aq $modules
there /dev/vda
mkdir -p /image /scratch /sysroot
mount -t "$image" -o ro /dev/vda /image || fail "the image cannot be mounted: has this kernel $image?"
if [ -n "$scratch" ]; then
  there /dev/vdb
  mount -t "$scratch" -o noatime /dev/vdb /scratch || fail "the scratch disk cannot be mounted: has this kernel $scratch?"
else
  mount -t tmpfs -o mode=0755,size=90% scratch /scratch
fi
mkdir /scratch/upper /scratch/work
chmod 0755 /scratch/upper
layers=lowerdir=/image,upperdir=/scratch/upper,workdir=/scratch/work
mount -t overlay -o "$layers,volatile" root /sysroot 2>/dev/null || # nobody wants it after a crash: it need not be synced
  mount -t overlay -o "$layers" root /sysroot || fail "the root cannot be put together: has this kernel overlay?"

if [ -n "$addresses" ]; then
  ip link set eth0 up
  for address in $addresses; do
    case $address in *:*) ip addr add "$address" dev eth0 nodad 2>/dev/null || ip addr add "$address" dev eth0 ;; *) ip addr add "$address" dev eth0 ;; esac
  done
  for gateway in $gateways; do
    case $gateway in *:*) ip -6 route add default via "$gateway" dev eth0 ;; *) ip route add default via "$gateway" dev eth0 ;; esac
  done
fi
if [ -n "$dns" ]; then
  mkdir -p /sysroot/etc
  rm -f /sysroot/etc/resolv.conf
  for address in $dns; do echo "nameserver $address"; done >/sysroot/etc/resolv.conf
fi

hostname "$name"
mkdir -p /sysroot/dev /sysroot/proc /sysroot/sys /sysroot/run /sysroot/tmp /sysroot/etc
names /sysroot/etc/hosts "$name"
for d in dev proc sys; do mount --move "/$d" "/sysroot/$d"; done
mount -t tmpfs -o nosuid,nodev,mode=0755 run /sysroot/run
cp /sbin/aiovmm-agent /sysroot/run/

for volume in $volumes; do # over all of these: one in /run or /dev is seen, too
  tag=${volume%%:*} rest=${volume#*:}
  mkdir -p "/sysroot${rest#*:}"
  mount -t virtiofs -o "${rest%%:*}" "$tag" "/sysroot${rest#*:}" || fail "the volume ${rest#*:} cannot be mounted: has this kernel virtiofs?"
done

exec switch_root /sysroot /run/aiovmm-agent
