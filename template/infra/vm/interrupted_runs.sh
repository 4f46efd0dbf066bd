# Fails the runs that ended with an earlier code location. It waits until the new one serves: Dagster
# executes the runs again at once, and needs it for that. The unit's TimeoutStartSec limits the wait.
set -eu

until docker exec code-location dagster api grpc-health-check --port=4000 > /dev/null 2>&1; do
    sleep 2
done
started=$(docker inspect --format '{{.State.StartedAt}}' code-location)
exec docker exec code-location python production/fail_interrupted_runs.py "$started"
