# Checks infra/ without a cloud: `just check-infra`, which makes build/function.zip first.
set -eu
cd "$(dirname "$0")"

terraform fmt -check -diff -recursive
for folder in . bootstrap; do
    terraform -chdir="$folder" init -backend=false -input=false
    terraform -chdir="$folder" validate
    terraform -chdir="$folder" test
done
