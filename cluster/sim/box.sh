# PID 1 of a box, in its own namespaces (net, pid, mount, uts, ipc). Its root file system is this machine's, copied on write into
# FOLDER/upper, with its own HOME, /tmp, /run and /dev/shm; none of its writes reach the machine.
# usage: box.sh FOLDER HOSTNAME STATE COMMAND [SEEN…] -- [SHARED…]
# Each SEEN is mounted read-only, each SHARED (PATH, or PATH=PATH IN THE BOX) for writing.
set -e
folder=$1 name=$2 state=$3 command=$4
shift 4
root=$folder/root

mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/home"
mount --bind "$folder/home" "$root/root"
mount --bind "$folder/tmp" "$root/tmp"
mount --bind "$folder/tmp" "$root/var/tmp"
if [ -d "$root$state" ]; then mount -t tmpfs tmpfs "$root$state"; fi # hides the other boxes' disks
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount --bind "$1" "$root$1"
  mount -o remount,bind,ro "$root$1"
  shift
done
shift
for shared; do
  mkdir -p "$root${shared#*=}"
  mount --bind "${shared%%=*}" "$root${shared#*=}"
done

hostname "$name"
rm -f "$root"/etc/ssh/ssh_host_*
mkdir -p "$root/.outside" "$root/run/sshd"
cd "$root"
pivot_root . .outside
cd /root
umount -l /.outside
. /etc/box_environment
echo up
exec >/root/box.log 2>&1 # the container's log
bash -c "$command" &
wait $! # instead of exec, since PID 1 has to reap orphaned processes, which bash does
