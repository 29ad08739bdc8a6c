# Pid 1 of a box, in namespaces of its own (net, pid, mount, uts, ipc). Its root is this machine's, copied on write into
# FOLDER/upper, with HOME, /tmp, /run and /dev/shm of its own; nothing that it writes reaches the machine.
# usage: box.sh FOLDER HOSTNAME STATE COMMAND [SEEN…] -- [SHARED…]; SEEN are mounted read-only, SHARED for writing
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
mount_like() {
  if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root${1%/*}" && touch "$root$1"; fi
  mount --bind "$1" "$root$1"
}
while [ "$1" != -- ]; do
  mount_like "$1"
  mount -o remount,bind,ro "$root$1"
  shift
done
shift
for shared; do mount_like "$shared"; done

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
wait $! # and not exec: pid 1 has to reap whatever is orphaned here, which bash does
