# Checks infra/ without a cloud. Run it by `just check-infra`, which first builds the bundles.
set -eu
cd "$(dirname "$0")"

terraform fmt -check -diff -recursive
for folder in . bootstrap; do
    terraform -chdir="$folder" init -backend=false -input=false
    terraform -chdir="$folder" validate
    terraform -chdir="$folder" test
done
