/* LD_PRELOAD on every node of the mesh: makes gloo and torch use only addresses and ports that the tunnels carry.

   A socket bound to port 0 gets one of MESH_PORTS ("20360-20399"). gethostname returns MESH_IP, whose address gloo then
   advertises, and the loopback interface gets this address, which NCCL (NCCL_SOCKET_IFNAME=lo) advertises. Applies to IPv4 and
   IPv6 TCP; sockets on 127.0.0.1 are unchanged, since no other node needs to reach them. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

static int raw_bind(int fd, const struct sockaddr *address, socklen_t size) {
    return (int)syscall(SYS_bind, fd, address, size);
}

int bind(int fd, const struct sockaddr *address, socklen_t size) {
    const char *ports = getenv("MESH_PORTS");
    char *rest;
    int type = 0;
    socklen_t type_size = sizeof type;
    struct sockaddr_storage copy;
    in_port_t *port = 0;

    if (!ports || !address || size > sizeof copy) return raw_bind(fd, address, size);
    memcpy(&copy, address, size);
    if (address->sa_family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)&copy;
        if (v4->sin_addr.s_addr != htonl(INADDR_LOOPBACK)) port = &v4->sin_port;
    } else if (address->sa_family == AF_INET6) {
        port = &((struct sockaddr_in6 *)&copy)->sin6_port;
    }
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size);
    if (!port || *port || type != SOCK_STREAM) return raw_bind(fd, address, size);

    long low = strtol(ports, &rest, 10), count = strtol(rest + 1, 0, 10) - low + 1;
    long first = (getpid() * 7L + fd) % count; /* neighbours don't all try the same one */
    for (long i = 0; i < count; i++) {
        *port = htons((in_port_t)(low + (first + i) % count));
        if (raw_bind(fd, (struct sockaddr *)&copy, size) == 0) return 0;
        if (errno != EADDRINUSE) return -1;
    }
    return -1; /* EADDRINUSE: better than a port that nobody can reach */
}

int gethostname(char *name, size_t size) {
    const char *ip = getenv("MESH_IP");
    struct utsname host;
    if (!ip) {
        uname(&host);
        ip = host.nodename;
    }
    if (strlen(ip) >= size) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(name, ip);
    return 0;
}

int getifaddrs(struct ifaddrs **list) {
    int (*real)(struct ifaddrs **) = (int (*)(struct ifaddrs **))dlsym(RTLD_NEXT, "getifaddrs");
    const char *ip = getenv("MESH_IP");
    int failed = real(list);
    if (failed || !ip) return failed;
    for (struct ifaddrs *e = *list; e; e = e->ifa_next)
        if (e->ifa_addr && e->ifa_addr->sa_family == AF_INET && (e->ifa_flags & IFF_LOOPBACK))
            inet_pton(AF_INET, ip, &((struct sockaddr_in *)e->ifa_addr)->sin_addr);
    return 0;
}
