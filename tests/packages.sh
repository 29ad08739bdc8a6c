#!/bin/sh
# Installs the Debian packages that the tests need, as root or through sudo; if it can't, prints the command to run and fails.
set -eu
PATH=$PATH:/usr/sbin:/sbin
needs=""
need() { # PACKAGE PROGRAM…: the package is needed unless one of the programs exists
  package=$1
  shift
  for program; do
    if command -v "$program" > /dev/null; then return; fi
  done
  needs="$needs $package"
}
need chromium chromium chromium-browser google-chrome google-chrome-stable chrome
need bubblewrap bwrap
need openssh-server sshd
need iproute2 ip
need curl curl
need build-essential cc
[ -n "$needs" ] || exit 0

if command -v apt-get > /dev/null; then
  sudo=""
  [ "$(id -u)" = 0 ] || sudo=sudo
  echo "Installing$needs, which the tests need."
  # shellcheck disable=SC2086  # several words
  if $sudo apt-get update -q > /dev/null && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q $needs > /dev/null; then
    exit 0
  fi
  echo "The tests need packages that could not be installed. Run: apt-get install$needs" >&2
else
  echo "The tests need programs that are not here. Install them, by their names on Debian:$needs" >&2
fi
exit 1
