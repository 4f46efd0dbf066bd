# Which pipelines of GitLab may act as the deployer: workload identity federation, with no key.
# https://docs.gitlab.com/ci/secrets/id_token_authentication/

variable "gitlab_url" {
  description = "Where GitLab runs."
  type        = string
  default     = "https://gitlab.com"

  validation {
    condition     = can(regex("^https://[^/]+$", var.gitlab_url))
    error_message = "An https URL without a path."
  }
}

variable "gitlab_project" {
  description = "Numeric IDs of the project and of its namespace, a user or a group. Unlike their names, nobody else can ever have them. Without them, nothing is federated."
  type = object({
    id           = string
    namespace_id = string
  })
  default = null

  validation {
    condition     = var.gitlab_project == null || can(regex("^[0-9]+ [0-9]+$", "${var.gitlab_project.id} ${var.gitlab_project.namespace_id}"))
    error_message = "Numeric IDs, not names: glab api projects/NAMESPACE%2FPROJECT shows them as id and namespace.id."
  }
}

variable "deploy_on" {
  description = "What deploys to this environment: push (to the branch main) or release (a tag). Both have to be protected."
  type        = string
  default     = "release"

  validation {
    condition     = contains(["push", "release"], var.deploy_on)
    error_message = "Either push or release."
  }
}

locals {
  is_federated = var.gitlab_project != null

  deploying_pipelines = {
    push    = "assertion.ref_type == 'branch' && assertion.ref == 'main'"
    release = "assertion.ref_type == 'tag'"
  }
}

resource "google_iam_workload_identity_pool" "gitlab" {
  count = local.is_federated ? 1 : 0

  workload_identity_pool_id = "${local.account_prefix}-gitlab"
  display_name              = "GitLab"

  depends_on = [google_project_service.api]
}

resource "google_iam_workload_identity_pool_provider" "gitlab" {
  count = local.is_federated ? 1 : 0

  workload_identity_pool_id          = google_iam_workload_identity_pool.gitlab[0].workload_identity_pool_id
  workload_identity_pool_provider_id = "gitlab"

  attribute_mapping = {
    "google.subject"       = "assertion.sub"
    "attribute.project_id" = "assertion.project_id"
  }

  attribute_condition = join(" && ", [
    "assertion.project_id == '${var.gitlab_project.id}'",
    "assertion.namespace_id == '${var.gitlab_project.namespace_id}'",
    "assertion.ref_protected == 'true'",
    local.deploying_pipelines[var.deploy_on],
  ])

  oidc {
    issuer_uri = var.gitlab_url
  }
}

resource "google_service_account_iam_member" "gitlab_acts_as_deployer" {
  count = local.is_federated ? 1 : 0

  service_account_id = google_service_account.deployer.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.gitlab[0].name}/attribute.project_id/${var.gitlab_project.id}"
}

output "workload_identity_provider" {
  description = "Where GitLab exchanges its token for one of the deployer."
  value       = one(google_iam_workload_identity_pool_provider.gitlab[*].name)
}
