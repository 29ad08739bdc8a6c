# Ends the rental that it runs on when no head has been seen for SECONDS. usage: watchdog.sh SECONDS [HEAD_HOST PORT]
#
# A head that is connected by SSH touches $beat (watchdog.py: HEARTBEAT); in a flat network this script checks the head's port
# and touches $beat itself. The rental is destroyed with the key that the market puts on each machine, valid for that machine
# only: the account's key is never here. If that fails, it is retried until it works or a head is back.
set -u
limit=$1 host=${2:-} port=${3:-}
beat=${SHOESTRING_HEARTBEAT:-/tmp/shoestring/heartbeat}
every=5
mkdir -p "$(dirname "$beat")"
touch "$beat" "$beat.seen"
say() { echo "$(date -u +%FT%TZ) $*"; }

# request METHOD URL KEY: succeeds if the market did it or reports that there is no such rental; a 404 alone may mean an unknown
# key. The key appears in no command line.
request() {
    if command -v curl > /dev/null; then
        answer=$(printf 'header = "Authorization: Bearer %s"\n' "$3" | curl -K - -s -m 30 -w '%{http_code}' -X "$1" "$2")
    else
        answer=$(KEY=$3 python3 - "$1" "$2" << 'END'
import os, sys, urllib.error, urllib.request
method, url = sys.argv[1:]
headers = {"Authorization": "Bearer " + os.environ["KEY"], "User-Agent": "shoestring"}
try:
    answer = urllib.request.urlopen(urllib.request.Request(url, None, headers, method=method), timeout=30)
except urllib.error.HTTPError as e:
    answer = e
print(answer.read().decode(errors="replace") + str(answer.status))
END
        )
    fi
    body=${answer%???} code=${answer#"${answer%???}"}
    say "$1 $2: ${code:-no answer}"
    case $code$body in
        2*) return 0 ;;
        404{*no_such_instance* | 404{*nstance*ot\ found*) return 0 ;;
        404{*od\ not\ found* | 404{*esource\ not\ found* | 404{*od\ does\ not\ exist*) return 0 ;;
        *) return 1 ;;
    esac
}

end() {
    if [ -n "${CONTAINER_ID:-}" ]; then
        request DELETE "${VAST_URL:-https://console.vast.ai}/api/v0/instances/$CONTAINER_ID/" "${CONTAINER_API_KEY:-}"
    elif [ -n "${RUNPOD_POD_ID:-}" ]; then
        # runpodctl is in every pod, with the pod's key (docs.runpod.io/runpodctl/overview)
        request DELETE "${RUNPOD_URL:-https://api.runpod.io}/v2/pods/$RUNPOD_POD_ID" "${RUNPOD_API_KEY:-}" ||
            { command -v runpodctl > /dev/null && timeout 60 runpodctl pod delete "$RUNPOD_POD_ID"; }
    else
        say "no market known here: everything is stopped"
        kill -s KILL -1
    fi
}

idle=0
while sleep "$every"; do
    [ -n "$host" ] && timeout 5 bash -c "exec 3<>/dev/tcp/$host/$port" 2> /dev/null && touch "$beat"
    if [ "$beat" -nt "$beat.seen" ]; then # compares file times with each other, so a clock that jumps doesn't matter
        touch -r "$beat" "$beat.seen"
        idle=0
    else
        idle=$((idle + every))
    fi
    [ "$idle" -lt "$limit" ] && continue
    say "no head for $idle s: this rental ends"
    end && sleep 30
done
