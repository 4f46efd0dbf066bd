# Runs Dagster from the image that the VM's metadata names, and follows each change of it.
#
# `just deploy-dagster` sets the image there, and reads the state that this reports as a guest
# attribute: starting, running or failed, the image, and the revision of the units and settings.
# Without an image, this waits.
set -u

METADATA="http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance"
STATE=${STATE:-/run/dagster}   # where the file image has the units' environment: the image that they run
WAIT=${WAIT:-60}               # seconds, at most, until a change of the metadata is noticed
HEALTHY_WITHIN=${HEALTHY_WITHIN:-300} # seconds
REVISION=$1                    # of the units and the settings, which cloud-init has written

metadata() {
    curl --silent --fail --max-time $((WAIT + 30)) --header 'Metadata-Flavor: Google' "$METADATA/$@"
}

report() {
    echo "$1"
    metadata guest-attributes/dagster/state --request PUT --data "$1 $REVISION" > /dev/null
}

# Show why the image does not run: what this prints is in the output of the VM's serial port.
report_failure() {
    systemctl status --no-pager --lines=20 dagster-code-location dagster-web dagster-daemon
    report "failed $1"
}

# Replace the image. The one that runs goes on until the new one is on this machine. The daemon stops
# first, so that it launches no run while the code location is stopped.
roll_out() {
    report "starting $1"
    # An image that is here may be deleted in the registry, or the registry not be available.
    if ! docker image inspect "$1" > /dev/null 2>&1 && ! docker pull --quiet "$1"; then
        report_failure "$1"
        return 1
    fi
    systemctl stop dagster-daemon
    systemctl stop dagster-web dagster-code-location
    printf 'IMAGE=%s\nCODE_LOCATION_MEMORY=%sk\n' "$1" "$((memory - 2560 * 1024))" > "$STATE/image"
    systemctl start --no-block dagster-code-location
    wait_until serves_code
    docker exec code-location dagster-daemon wipe > /dev/null # the heartbeats of the daemon that stopped
    systemctl start --no-block dagster-web dagster-daemon
    wait_until is_healthy
    docker image prune --all --force > /dev/null || true # older versions
}

wait_until() {
    deadline=$(($(date +%s) + HEALTHY_WITHIN))
    until "$1" || [ "$(date +%s)" -ge "$deadline" ]; do
        sleep 5
    done
}

serves_code() {
    docker exec code-location dagster api grpc-health-check --port=4000 > /dev/null 2>&1
}

is_healthy() {
    serves_code &&
        curl --silent --fail --max-time 10 http://127.0.0.1:3000/server_info > /dev/null &&
        docker exec --env=DAGSTER_DAEMON_HEARTBEAT_TOLERANCE=60 daemon dagster-daemon liveness-check > /dev/null 2>&1
}

# In kB. The runs get what the other containers and the operating system do not need.
memory=$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
mkdir -p "$STATE"
IMAGE=
if [ -f "$STATE/image" ]; then
    . "$STATE/image"
    systemctl start --no-block dagster-code-location dagster-web dagster-daemon # if a roll-out was interrupted
    wait_until is_healthy
fi
while true; do
    wanted=$(metadata attributes/dagster-image)
    if [ -n "$wanted" ]; then
        if [ "$wanted" = "$IMAGE" ] || roll_out "$wanted"; then
            IMAGE=$wanted
            if is_healthy; then report "running $IMAGE"; else report_failure "$IMAGE"; fi
        fi
    fi
    metadata "attributes/?recursive=true&wait_for_change=true&timeout_sec=$WAIT" > /dev/null || sleep 5
    # Terraform has changed the units or the settings: cloud-init writes them when the VM starts.
    if revision=$(metadata attributes/dagster-revision) && [ "$revision" != "$REVISION" ]; then
        systemctl reboot
        exit
    fi
done
