# On a rented box, beside authorized_keys and portpin.c: what the head needs to dial a tunnel into it. As often as one likes.
# The box's own sshd may refuse forwards to addresses other than 127.0.0.1; ours allows them, listens nowhere, and ends with
# the connection of the head that it serves.
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
printf '#!/bin/sh\nexec %s -i -f %s/sshd_config\n' "$sshd" "$here" > enter
chmod 700 enter
if [ portpin.c -nt portpin.so ]; then
    command -v cc > /dev/null || { apt-get -q update && apt-get -qy install gcc libc6-dev; }
    cc -O2 -shared -fPIC -o portpin.so portpin.c
fi
