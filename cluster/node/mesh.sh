# Runs on a rented node, beside authorized_keys and portpin.c, and prepares it for the head's tunnel. usage: mesh.sh HEARTBEAT
# The node's own sshd may refuse forwards to addresses other than 127.0.0.1. This one allows them, listens on no port, and ends
# with the head's connection that it serves.
set -eu
cd "$(dirname "$0")"
here=$PWD
sshd=$(command -v sshd || echo /usr/sbin/sshd)
[ -x "$sshd" ] || { echo "the image has no sshd" >&2; exit 1; }
mkdir -p /run/sshd
[ -f host_key ] || ssh-keygen -q -t ed25519 -N '' -f host_key
cat > sshd_config <<END
HostKey $here/host_key
AuthorizedKeysFile $here/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
GatewayPorts clientspecified
AllowTcpForwarding yes
ClientAliveInterval 5
ClientAliveCountMax 3
PidFile none
END
cat > enter <<END
#!/bin/sh
mkdir -p "\$(dirname "$1")"
(while kill -0 \$\$; do touch "$1"; sleep 5; done) < /dev/null > /dev/null 2>&1 & # for watchdog.sh, while sshd lives
exec $sshd -i -f $here/sshd_config
END
chmod 700 enter
if [ portpin.c -nt portpin.so ]; then
    command -v cc > /dev/null || { apt-get -q update && apt-get -qy install gcc libc6-dev; }
    cc -O2 -shared -fPIC -o portpin.so portpin.c -ldl
fi
