# Which runs of GitHub Actions may act as the deployer: workload identity federation, with no key.
# https://docs.github.com/actions/concepts/security/openid-connect

variable "github_repository" {
  description = "Numeric IDs of the repository and of its owner, a user or an organization. Unlike their names, nobody else can ever have them. Without them, nothing is federated."
  type = object({
    id       = string
    owner_id = string
  })
  default = null

  validation {
    condition     = var.github_repository == null || can(regex("^[0-9]+ [0-9]+$", "${var.github_repository.id} ${var.github_repository.owner_id}"))
    error_message = "Numeric IDs, not names: gh api repos/OWNER/REPOSITORY --jq '.id, .owner.id'"
  }
}

variable "deploy_on" {
  description = "What deploys to this environment: push (to the branch main) or release (of a tag)."
  type        = string
  default     = "release"

  validation {
    condition     = contains(["push", "release"], var.deploy_on)
    error_message = "Either push or release."
  }
}

locals {
  is_federated = var.github_repository != null

  deploying_runs = {
    push    = "assertion.event_name == 'push' && assertion.ref == 'refs/heads/main'"
    release = "assertion.event_name == 'release' && assertion.ref_type == 'tag'"
  }
}

resource "google_iam_workload_identity_pool" "github" {
  count = local.is_federated ? 1 : 0

  workload_identity_pool_id = "${local.account_prefix}-github"
  display_name              = "GitHub Actions"

  depends_on = [google_project_service.api]
}

resource "google_iam_workload_identity_pool_provider" "github" {
  #checkov:skip=CKV_GCP_125:It knows the repository's name alone, which somebody else can have one day.
  count = local.is_federated ? 1 : 0

  workload_identity_pool_id          = google_iam_workload_identity_pool.github[0].workload_identity_pool_id
  workload_identity_pool_provider_id = "github"

  attribute_mapping = {
    "google.subject"          = "assertion.sub"
    "attribute.repository_id" = "assertion.repository_id"
  }

  attribute_condition = join(" && ", [
    "assertion.repository_id == '${var.github_repository.id}'",
    "assertion.repository_owner_id == '${var.github_repository.owner_id}'",
    local.deploying_runs[var.deploy_on],
  ])

  oidc {
    issuer_uri = "https://token.actions.githubusercontent.com"
  }
}

resource "google_service_account_iam_member" "github_acts_as_deployer" {
  count = local.is_federated ? 1 : 0

  service_account_id = google_service_account.deployer.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.github[0].name}/attribute.repository_id/${var.github_repository.id}"
}

output "workload_identity_provider" {
  description = "Where GitHub Actions exchanges its token for one of the deployer."
  value       = one(google_iam_workload_identity_pool_provider.github[*].name)
}
