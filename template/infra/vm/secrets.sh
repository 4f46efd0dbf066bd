# Writes the secrets of Dagster, from Secret Manager, to an environment file in memory.
# Its arguments are the ID of the project, and the names of the secrets.
set -eu
umask 077

STATE=${STATE:-/run/dagster}
METADATA="http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance"
SECRETS="${SECRET_MANAGER:-https://secretmanager.googleapis.com}/v1/projects/$1/secrets"
shift

# The text of a field of a JSON object.
field() {
    sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"
}

mkdir -p "$STATE"
: > "$STATE/secrets"
for name in "$@"; do
    token=$(curl --silent --show-error --fail --header 'Metadata-Flavor: Google' \
        "$METADATA/service-accounts/default/token" | field access_token)
    data=$(printf 'Authorization: Bearer %s' "$token" | curl --silent --show-error --fail --header @- \
        "$SECRETS/$name/versions/latest:access" | field data)
    [ -n "$data" ] || { echo "Could not read the secret $name." >&2; exit 1; }
    value=$(printf %s "$data" | base64 --decode)
    [ "$(printf %s "$value" | wc -l)" -eq 0 ] || { echo "The secret $name has more than one line." >&2; exit 1; }
    printf '%s=%s\n' "$name" "$value" >> "$STATE/secrets"
done
