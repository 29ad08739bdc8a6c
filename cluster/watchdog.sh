# Ends the rental that it runs on when no head has been seen for a while. usage: watchdog.sh SECONDS [HEAD_HOST PORT]
#
# A head that is connected by SSH touches $beat (watchdog.py: HEARTBEAT); in a flat network this script looks for the head's port
# itself, and touches it too. The rental is destroyed with the key that the market puts on its machines, which is good for this
# one only: no key of the account is here. Where that fails it is tried again until it works or a head is back.
set -u
limit=$1 host=${2:-} port=${3:-}
beat=${SHOESTRING_HEARTBEAT:-/tmp/shoestring/heartbeat}
every=5
mkdir -p "$(dirname "$beat")"
touch "$beat" "$beat.seen"
say() { echo "$(date -u +%FT%TZ) $*"; }

# request METHOD URL KEY [JSON]: succeeds where the market did it, or no longer knows this machine. The key is in no command line.
request() {
    if command -v curl > /dev/null; then
        code=$(printf 'header = "Authorization: Bearer %s"\n' "$3" | curl -K - -s -m 30 -o /dev/null -w '%{http_code}' \
            -X "$1" ${4:+-H 'Content-Type: application/json' -d "$4"} "$2")
    else
        code=$(KEY=$3 python3 - "$1" "$2" "${4:-}" << 'END'
import os, sys, urllib.error, urllib.request
method, url, body = sys.argv[1:]
headers = {"Authorization": "Bearer " + os.environ["KEY"], "Content-Type": "application/json", "User-Agent": "shoestring"}
try:
    print(urllib.request.urlopen(urllib.request.Request(url, body.encode() or None, headers, method=method), timeout=30).status)
except urllib.error.HTTPError as e:
    print(e.code)
END
        )
    fi
    say "$1 $2: ${code:-no answer}"
    case $code in 2* | 404) return 0 ;; *) return 1 ;; esac
}

end() {
    if [ -n "${CONTAINER_ID:-}" ]; then
        request DELETE "${VAST_URL:-https://console.vast.ai}/api/v0/instances/$CONTAINER_ID/" "${CONTAINER_API_KEY:-}"
    elif [ -n "${RUNPOD_POD_ID:-}" ]; then
        api=${RUNPOD_URL:-https://api.runpod.io}
        request DELETE "$api/v2/pods/$RUNPOD_POD_ID" "${RUNPOD_API_KEY:-}" ||
            request POST "$api/graphql" "${RUNPOD_API_KEY:-}" \
                "{\"query\": \"mutation { podTerminate(input: {podId: \\\"$RUNPOD_POD_ID\\\"}) }\"}"
    else
        say "no market known here: everything is stopped"
        kill -s KILL -1
    fi
}

idle=0
while sleep "$every"; do
    [ -n "$host" ] && timeout 5 bash -c "exec 3<>/dev/tcp/$host/$port" 2> /dev/null && touch "$beat"
    if [ "$beat" -nt "$beat.seen" ]; then # no clock is compared, so none can jump
        touch -r "$beat" "$beat.seen"
        idle=0
    else
        idle=$((idle + every))
    fi
    [ "$idle" -lt "$limit" ] && continue
    say "no head for $idle s: this rental ends"
    end && sleep 30
done
